#!/bin/sh
# Tests the AArch64 kernels on an x86-64 machine with Debian or a derivative, emulated as a
# Raspberry Pi 4 (Cortex-A72) and a Raspberry Pi 5 (Cortex-A76), and prints the instruction sets
# tested. Installs missing tools, see targets/aarch64-toolchain.sh.
#
# Usage: targets/test-aarch64.sh [ARGUMENTS OF THE TEST PROGRAMS]
set -eu
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
directory=${CARGO_TARGET_DIR:-target}/aarch64
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
export CARGO_TARGET_DIR="$directory"

# Installs missing tools and exports the environment.
environment=$(targets/aarch64-toolchain.sh "$target")
eval "$environment"

# Emulation is about 20 times slower, so fewer random cases run by default.
export PROPTEST_CASES="${PROPTEST_CASES:-4}"
for cpu in cortex-a72 cortex-a76; do
    echo "== $cpu"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $cpu -L /usr/aarch64-linux-gnu"
    # shellcheck disable=SC2086 # empty or one word
    cargo test -q --locked $EDGE_LMM_CARGO_FLAGS --target $target -p edge-lmm-kernels --lib --tests -- "$@"
    # shellcheck disable=SC2086
    cargo test -q --locked $EDGE_LMM_CARGO_FLAGS --target $target -p edge-lmm-kernels --lib -- --nocapture --exact \
        dispatch::tests::kernels_report_their_instruction_set | grep '^instruction sets:'
done
