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

for kind in ${kinds:-x86_64 aarch64 sdist}; do
    case $kind in
    x86_64) wheel x86_64-unknown-linux-gnu ;;
    aarch64)
        environment=$(targets/aarch64-toolchain.sh --zig aarch64-unknown-linux-gnu)
        eval "$environment"
        # shellcheck disable=SC2086 # a list of words
        wheel aarch64-unknown-linux-gnu $EDGE_LMM_CARGO_FLAGS
        ;;
    sdist) "$tools/bin/maturin" sdist --manifest-path "$manifest" --out "$output" ;;
    esac
done
