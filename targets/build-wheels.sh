#!/bin/sh
# Builds the wheels of the Python package for x86-64 and AArch64, and the source distribution. The
# linker is zig, which can link against an old C library: the wheels run on every Linux with glibc 2.31
# or newer.
#
# Usage: targets/build-wheels.sh --output FOLDER [--profile PROFILE] [x86_64 | aarch64 | sdist]...
set -eu
cd "$(dirname "$0")/.."

usage() {
    echo "error: $1; usage: $0 --output FOLDER [--profile PROFILE] [x86_64 | aarch64 | sdist]..." >&2
    exit 2
}
output=
profile=dist
kinds=
while [ $# -gt 0 ]; do
    case $1 in
    --output | --profile)
        [ $# -ge 2 ] || usage "$1 needs a value"
        case $1 in --output) output=$2 ;; *) profile=$2 ;; esac
        shift
        ;;
    x86_64 | aarch64 | sdist) kinds="$kinds $1" ;;
    *) usage "unknown argument $1" ;;
    esac
    shift
done
[ -n "$output" ] || usage "the output folder is missing"

tools=${CARGO_TARGET_DIR:-target}/wheel-tools
if [ ! -e "$tools/ready" ]; then
    python3 -m venv "$tools"
    "$tools/bin/python" -m pip install -q --disable-pip-version-check maturin==1.16.0 ziglang==0.15.1
    touch "$tools/ready"
fi
tools=$(cd "$tools" && pwd)
manifest=targets/python/Cargo.toml

# Builds a wheel for a target with the given flags of cargo.
wheel() {
    target=$1
    shift
    # maturin finds zig through the Python of the environment.
    PATH="$tools/bin:$PATH" "$tools/bin/maturin" build --locked --profile "$profile" --zig \
        --target "$target" --compatibility manylinux_2_31 --manifest-path "$manifest" --out "$output" "$@"
}

# Builds the source distribution. maturin copies the lock file of the whole workspace, but only the
# members that the package needs: --locked would refuse the entries of the others.
source_distribution() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    "$tools/bin/maturin" sdist --manifest-path "$manifest" --out "$work"
    archive=$(cd "$work" && echo ./*.tar.gz)
    name=$(basename "$archive" .tar.gz)
    tar -xzf "$work/$archive" -C "$work"
    for locked in '' --locked; do
        # shellcheck disable=SC2086 # an option or nothing
        cargo metadata $locked --format-version 1 --manifest-path "$work/$name/Cargo.toml" >/dev/null
    done
    time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
    mkdir -p "$output"
    tar -c --sort=name --format=ustar --mtime="@$time" --owner=0 --group=0 --numeric-owner -C "$work" "$name" |
        gzip -n >"$output/$name.tar.gz"
    echo "$output/$name.tar.gz"
}

for kind in ${kinds:-x86_64 aarch64 sdist}; do
    case $kind in
    x86_64) wheel x86_64-unknown-linux-gnu ;;
    aarch64)
        environment=$(targets/aarch64-toolchain.sh --zig aarch64-unknown-linux-gnu)
        eval "$environment"
        # shellcheck disable=SC2086 # a list of words
        wheel aarch64-unknown-linux-gnu $EDGE_LMM_CARGO_FLAGS
        ;;
    sdist) source_distribution ;;
    esac
done
