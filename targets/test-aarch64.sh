#!/bin/sh
# Tests the kernels for AArch64 on an x86-64 machine with Debian or a relative of it, emulated as a Raspberry Pi 4
# (Cortex-A72) and a Raspberry Pi 5 (Cortex-A76), and says which instruction sets were tested. Installs what is missing:
# Debian packages, and the standard library through rustup or, where that is not possible, built from Debian's sources of
# the same version (EDGE_LMM_BUILD_STD=1 asks for that).
#
# Usage: targets/test-aarch64.sh [ARGUMENTS OF THE TEST PROGRAMS]
set -eu
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
directory=${CARGO_TARGET_DIR:-target}/aarch64
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
export CARGO_TARGET_DIR="$directory"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# The emulator, and a linker and C library for the target.
install_packages() {
    missing=
    command -v qemu-aarch64 >/dev/null || missing="$missing qemu-user"
    command -v aarch64-linux-gnu-gcc >/dev/null || missing="$missing gcc-aarch64-linux-gnu"
    [ -e /usr/aarch64-linux-gnu/lib/libc.so.6 ] || missing="$missing libc6-arm64-cross"
    [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || missing="$missing libc6-dev-arm64-cross"
    [ -n "$missing" ] || return 0
    echo "installing$missing" >&2
    as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# The sources of the compiler's standard library, from the backports of Debian 13, where the compiler looks for them.
install_library_sources() {
    sysroot=$(rustc --print sysroot)
    [ ! -e "$sysroot/lib/rustlib/src/rust/library/Cargo.toml" ] || return 0
    version=$(rustc --version | cut -d' ' -f2)
    apt="$directory/apt"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' | grep -v security | sort -u | head -n 1)
    if [ -z "$mirror" ]; then
        echo "error: no Debian mirror is configured: install the standard library for $target yourself" >&2
        exit 1
    fi
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie-backports main" \
        >"$apt/sources.list"
    options="-oDir::Etc::SourceList=$apt/sources.list -oDir::Etc::SourceParts=/dev/null
        -oDir::State::Lists=$apt/lists -oDir::Cache=$apt/cache -oAPT::Sandbox::User=$(id -un)"
    # shellcheck disable=SC2086 # a list of words
    {
        apt-get $options update -qq
        full=$(apt-cache $options madison rust-src | awk '{ print $3 }' | grep -F "$version+" | head -n 1)
        if [ -z "$full" ]; then
            echo "error: trixie-backports has no rust-src $version: use rustup, or the compiler that it has" >&2
            exit 1
        fi
        (cd "$apt" && apt-get $options download "rust-src=$full")
    }
    dpkg -x "$apt"/rust-src_*.deb "$apt/root"
    mkdir -p "$sysroot/lib/rustlib/src"
    ln -sfn "$apt/root/usr/src/rustc-$version" "$sysroot/lib/rustlib/src/rust"
}

# Sets `build_std` to what cargo needs to be told about the standard library.
install_library() {
    build_std=
    if [ -z "${EDGE_LMM_BUILD_STD:-}" ]; then
        [ ! -d "$(rustc --print target-libdir --target $target)" ] || return 0
        if command -v rustup >/dev/null && rustup target add $target; then return 0; fi
        echo "no standard library for $target to be had: building it" >&2
    fi
    install_library_sources
    export RUSTC_BOOTSTRAP=1
    build_std=-Zbuild-std
}

install_packages
install_library

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
# Emulation is some 20 times slower: fewer random cases, unless asked for.
export PROPTEST_CASES="${PROPTEST_CASES:-4}"
for cpu in cortex-a72 cortex-a76; do
    echo "== $cpu"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $cpu -L /usr/aarch64-linux-gnu"
    # shellcheck disable=SC2086 # empty or one word
    cargo test -q --locked $build_std --target $target -p edge-lmm-kernels --lib --tests -- "$@"
    # shellcheck disable=SC2086
    cargo test -q --locked $build_std --target $target -p edge-lmm-kernels --lib -- --nocapture --exact \
        cpu::tests::kernels_are_what_they_say | grep '^instruction sets:'
done
