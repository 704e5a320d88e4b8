#!/bin/sh
# Prepares this machine to build and run AArch64 programs: installs missing tools and prints the
# environment for cargo as shell `export` lines. Everything else goes to standard error.
#
#     eval "$(targets/aarch64-toolchain.sh [--zig] [aarch64-unknown-linux-gnu|aarch64-unknown-linux-musl])"
#     cargo build $EDGE_LMM_CARGO_FLAGS --target ...
#
# With --zig, static x86-64 programs can be built, too: x86_64-unknown-linux-musl.
#
# The standard library comes from rustup. Without rustup, or with EDGE_LMM_BUILD_STD=1, it is built
# from Debian's sources of the compiler's version, and EDGE_LMM_CARGO_FLAGS is -Zbuild-std. The
# emulator, a linker and a C library for running programs come from Debian. With --zig the linker is
# zig, which can link against old C libraries (`cargo zigbuild --target
# aarch64-unknown-linux-gnu.2.31`); it is installed from PyPI into a virtual environment.
set -eu
cd "$(dirname "$0")/.."
exec 3>&1 1>&2

zig=
target=aarch64-unknown-linux-gnu
for argument in "$@"; do
    case $argument in
    --zig) zig=1 ;;
    aarch64-unknown-linux-gnu | aarch64-unknown-linux-musl | x86_64-unknown-linux-musl) target=$argument ;;
    *)
        echo "error: $0: unknown argument $argument; expected --zig, aarch64-unknown-linux-gnu, aarch64-unknown-linux-musl or x86_64-unknown-linux-musl"
        exit 2
        ;;
    esac
done
if [ "$target" = x86_64-unknown-linux-musl ] && [ -z "$zig" ]; then
    echo "error: $0: $target needs --zig"
    exit 2
fi

tools=${CARGO_TARGET_DIR:-target}/cross-tools
mkdir -p "$tools"
tools=$(cd "$tools" && pwd)

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Installs the emulator, a linker and a C library for the target.
install_packages() {
    missing=
    if [ "$target" != x86_64-unknown-linux-musl ]; then
        command -v qemu-aarch64 >/dev/null || missing="$missing qemu-user"
        command -v aarch64-linux-gnu-gcc >/dev/null || missing="$missing gcc-aarch64-linux-gnu"
        [ -e /usr/aarch64-linux-gnu/lib/libc.so.6 ] || missing="$missing libc6-arm64-cross"
        [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || missing="$missing libc6-dev-arm64-cross"
    fi
    [ -z "$zig" ] || python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
    [ -n "$missing" ] || return 0
    echo "installing$missing"
    as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    as_root apt-get install -y -qq --no-install-recommends $missing
}

# Installs the sources of the standard library from the backports of Debian 13, where the compiler
# expects them.
install_library_sources() {
    sysroot=$(rustc --print sysroot)
    [ ! -e "$sysroot/lib/rustlib/src/rust/library/Cargo.toml" ] || return 0
    version=$(rustc --version | cut -d' ' -f2)
    apt="$tools/apt"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    # shellcheck disable=SC2016 # apt's own variable
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' | grep -v security | sort -u | head -n 1)
    if [ -z "$mirror" ]; then
        echo "error: no Debian mirror is configured; install the standard library for $target manually"
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
            echo "error: trixie-backports has no rust-src $version; use rustup, or the compiler from trixie-backports"
            exit 1
        fi
        (cd "$apt" && apt-get $options download "rust-src=$full")
    }
    dpkg -x "$apt"/rust-src_*.deb "$apt/root"
    mkdir -p "$sysroot/lib/rustlib/src"
    ln -sfn "$apt/root/usr/src/rustc-$version" "$sysroot/lib/rustlib/src/rust"
}

# Succeeds if cargo must build the standard library.
build_library() {
    if [ -z "${EDGE_LMM_BUILD_STD:-}" ]; then
        [ ! -d "$(rustc --print target-libdir --target "$target")" ] || return 1
        if command -v rustup >/dev/null && rustup target add "$target"; then return 1; fi
        echo "no prebuilt standard library for $target; building it"
    fi
    install_library_sources
}

# Installs zig and cargo-zigbuild.
install_zig() {
    [ ! -e "$tools/venv/ready" ] || return 0
    python3 -m venv "$tools/venv"
    "$tools/venv/bin/pip" install -q --disable-pip-version-check ziglang==0.15.1 cargo-zigbuild==0.24.1
    touch "$tools/venv/ready"
}

install_packages
flags=
if build_library; then
    flags=-Zbuild-std
    echo 'export RUSTC_BOOTSTRAP=1' >&3
fi
echo "export EDGE_LMM_CARGO_FLAGS='$flags'" >&3
if [ -n "$zig" ]; then
    install_zig
    # cargo finds its subcommand zigbuild, and that finds zig.
    echo "export PATH='$tools/venv/bin':\"\$PATH\"" >&3
else
    echo 'export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc' >&3
    echo 'export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc' >&3
fi
