#!/bin/sh
# Tests the GPU kernels, and whole models on them, without a GPU: on Mesa's llvmpipe, a Vulkan device in software. Checks
# the CUDA build, too, for which no CUDA is needed. Installs Debian's packages of the driver where they are missing.
#
# Usage: targets/test-gpu-kernels.sh
set -eu
cd "$(dirname "$0")/.."

# The name may contain the architecture.
driver() {
    # shellcheck disable=SC2012 # names without special characters
    ls /usr/share/vulkan/icd.d/lvp_icd*.json 2>/dev/null | head -n 1
}
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}
missing=
[ -n "$(driver)" ] || missing="$missing mesa-vulkan-drivers"
ldconfig -p | grep -q 'libvulkan\.so\.1' || missing="$missing libvulkan1"
if [ -n "$missing" ]; then
    echo "installing$missing"
    as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    as_root apt-get install -y -qq --no-install-recommends $missing
fi
VK_DRIVER_FILES=$(driver)
export VK_DRIVER_FILES
# For GPUs of JetPack 6; the default is the newest CUDA.
export CUDARC_CUDA_VERSION="${CUDARC_CUDA_VERSION:-12060}"

cargo test --locked -p edge-lmm-ops -p edge-lmm-convert --features edge-lmm-ops/vulkan,edge-lmm-convert/vulkan \
    --test cube --test parity_vulkan
cargo clippy --locked -p edge-lmm-ops -p edge-lmm -p edge-lmm-cli --features edge-lmm-cli/cuda,edge-lmm-cli/vulkan --all-targets -- -D warnings
