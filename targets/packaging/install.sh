#!/bin/sh
# Installs edge-lmm and edge-lmm-convert of a release for the user who runs it: downloads the archive for
# this machine, compares it with the release's SHA256SUMS and unpacks programs, manual pages and
# completions. An error leaves an installed version unchanged.
#
# Usage: install.sh [--from URL] [--version VERSION] [--target DEVICE] [--prefix FOLDER]
#   --from URL        folder of the release's files [default: the release that this script belongs to]
#   --version VERSION version of the files [default: that of this script]
#   --target DEVICE   host, raspberry-pi-4, raspberry-pi-5, jetson-orin-nano, jetson-orin-nx or
#                     jetson-agx-orin [default: this machine]
#   --prefix FOLDER   [default: ~/.local]
set -eu

# The release workflow enters both.
from=@RELEASE@
version=@VERSION@
target=
prefix=${HOME:-}/.local

fail() {
    echo "error: $1" >&2
    exit 1
}
while [ $# -gt 0 ]; do
    case $1 in
    --from | --version | --target | --prefix) [ $# -ge 2 ] || fail "$1 needs a value" ;;
    *) fail "unknown argument $1; expected --from URL, --version VERSION, --target DEVICE or --prefix FOLDER" ;;
    esac
    case $1 in
    --from) from=${2%/} ;;
    --version) version=$2 ;;
    --target) target=$2 ;;
    --prefix) prefix=$2 ;;
    esac
    shift 2
done
case $from in @*) fail "this copy of the script belongs to no release; name the folder of its files with --from URL" ;; esac
case $version in @*) fail "this copy of the script belongs to no release; name the version with --version VERSION" ;; esac

# All AArch64 boards without CUDA share one program.
detect() {
    [ "$(uname -s)" = Linux ] || fail "releases are for Linux, not $(uname -s)"
    case $(uname -m) in
    aarch64) if [ -e /etc/nv_tegra_release ]; then echo jetson-orin-nano; else echo raspberry-pi-5; fi ;;
    x86_64) echo host ;;
    *) fail "there is no program for $(uname -m); releases are for aarch64 (64-bit systems) and x86_64" ;;
    esac
}
[ -n "$target" ] || target=$(detect)

if command -v curl >/dev/null; then
    download() { curl -fsSL --retry 2 -o "$2" "$1"; }
elif command -v wget >/dev/null; then
    download() { wget -q -O "$2" "$1"; }
else
    fail "curl or wget is needed to download the release"
fi
command -v sha256sum >/dev/null || fail "sha256sum (coreutils) is needed to check the download"

archive=edge-lmm-$version-$target.tar.gz
mkdir -p "$prefix" || fail "cannot create $prefix"
work=$(mktemp -d "$prefix/.edge-lmm.XXXXXX") || fail "cannot write to $prefix"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
for file in SHA256SUMS "$archive"; do
    reason=$(download "$from/$file" "$work/$file" 2>&1) ||
        fail "cannot download $from/$file: $(echo "$reason" | tail -n 1)"
done
awk -v name="$archive" '$2 == name || $2 == "*" name' "$work/SHA256SUMS" >"$work/expected"
[ -s "$work/expected" ] || fail "SHA256SUMS of the release does not list $archive"
(cd "$work" && sha256sum -c expected >/dev/null 2>&1) ||
    fail "the checksum of $archive is not that of SHA256SUMS; nothing was installed"
tar -xzf "$work/$archive" -C "$work" usr/bin usr/share || fail "cannot unpack $archive"
"$work/usr/bin/edge-lmm" --version >"$work/version" 2>&1 ||
    fail "the program for $target does not run on this machine: $(head -n 1 "$work/version")"

# Each file is replaced as a whole; the programs come last.
for folder in share bin; do
    (cd "$work/usr" && find "$folder" -type f) | while read -r file; do
        mkdir -p "$prefix/${file%/*}"
        mv -f "$work/usr/$file" "$prefix/$file"
    done
done
echo "installed $(cat "$work/version") in $prefix/bin"
case :$PATH: in
*":$prefix/bin:"*) ;;
*) echo "add it to the search path: export PATH=\"$prefix/bin:\$PATH\"" ;;
esac
