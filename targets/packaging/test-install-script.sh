#!/bin/sh
# Tests install.sh with releases that this script makes and serves on a local port: a complete one, one
# whose archive was changed, one without the archive, one whose checksums do not list it, and one whose
# program does not run.
#
# Usage: targets/packaging/test-install-script.sh
set -eu
cd "$(dirname "$0")"

work=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# release NAME EXIT_CODE: files of a release whose programs are scripts.
release() {
    root=$work/root
    rm -rf "$root"
    mkdir -p "$root/usr/bin" "$root/usr/share/man/man1" "$root/var/lib/edge-lmm" "$work/web/$1"
    for program in edge-lmm edge-lmm-convert; do
        printf '#!/bin/sh\necho %s 9.9.9\nexit %s\n' "$program" "$2" >"$root/usr/bin/$program"
        chmod 755 "$root/usr/bin/$program"
    done
    echo page >"$root/usr/share/man/man1/edge-lmm.1.gz"
    tar -czf "$work/web/$1/edge-lmm-9.9.9-host.tar.gz" -C "$root" usr var
    (cd "$work/web/$1" && sha256sum ./*.tar.gz | sed 's, \./, ,' >SHA256SUMS)
}
release good 0
release changed 0
echo >>"$work/web/changed/edge-lmm-9.9.9-host.tar.gz"
release missing 0
rm "$work/web/missing/edge-lmm-9.9.9-host.tar.gz"
release unlisted 0
sed -i 's/host/other/' "$work/web/unlisted/SHA256SUMS"
release broken 3

(cd "$work/web" && exec python3 -u -m http.server --bind 127.0.0.1 0) >"$work/server.log" 2>&1 &
server=$!
port=
for _ in $(seq 100); do
    port=$(sed -n 's/.*127\.0\.0\.1 port \([0-9]*\).*/\1/p' "$work/server.log")
    [ -z "$port" ] || break
    sleep 0.1
done
[ -n "$port" ] || {
    echo "error: the local server does not start: $(cat "$work/server.log")" >&2
    exit 1
}

install() {
    sh ./install.sh --from "http://127.0.0.1:$port/$1" --version 9.9.9 --target host --prefix "$work/prefix" \
        >"$work/output" 2>&1
}
# rejects RELEASE MESSAGE: installs nothing, says why, and leaves no temporary file.
rejects() {
    if install "$1"; then
        echo "error: the release \"$1\" was installed" >&2
        exit 1
    fi
    grep -q "^error: .*$2" "$work/output" || {
        echo "error: the release \"$1\" gives another message: $(cat "$work/output")" >&2
        exit 1
    }
    [ -z "$(find "$work/prefix" -name '.edge-lmm.*')" ]
    [ "$(wc -l <"$work/output")" = 1 ] || {
        echo "error: the message has several lines: $(cat "$work/output")" >&2
        exit 1
    }
}

for bad in "changed:checksum" "missing:cannot download" "unlisted:does not list" "broken:does not run"; do
    rejects "${bad%%:*}" "${bad#*:}"
    [ ! -e "$work/prefix/bin" ]
done
install good
"$work/prefix/bin/edge-lmm" | grep -q 9.9.9
[ -f "$work/prefix/share/man/man1/edge-lmm.1.gz" ] && [ ! -e "$work/prefix/var" ]
grep -q "export PATH" "$work/output"
# A failed update keeps the installed version.
rejects changed checksum
"$work/prefix/bin/edge-lmm" | grep -q 9.9.9
install good
if sh ./install.sh --prefix "$work/prefix" >"$work/output" 2>&1; then exit 1; fi
grep -q "belongs to no release" "$work/output"
echo "install.sh: ok"
