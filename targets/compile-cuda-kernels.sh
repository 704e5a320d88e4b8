#!/bin/sh
# Compiles every GPU kernel for an Orin (compute capability 8.7) with NVIDIA's compilers, without a
# GPU. The CUDA runtime uses a stub driver (targets/cuda-stub.c), NVRTC compiles to PTX, ptxas to
# machine code. Prints the registers of each kernel and fails if one does not compile or spills many
# registers. Then runs a model with enough memory and with too little, which must be reported. The
# compilers are installed from PyPI, for x86-64.
#
# Usage: targets/compile-cuda-kernels.sh [PROGRAM]    edge-lmm with CUDA [default: a development build of it]
set -eu
cd "$(dirname "$0")/.."

version=12.6.77
export CUDARC_CUDA_VERSION=12060
tools=${CARGO_TARGET_DIR:-target}/cuda-tools
mkdir -p "$tools"
tools=$(cd "$tools" && pwd)

if [ ! -e "$tools/ready" ]; then
    for package in nvrtc runtime nvcc; do
        python3 -m pip download -q --disable-pip-version-check --no-deps -d "$tools" \
            "nvidia-cuda-$package-cu12==$version"
    done
    for wheel in "$tools"/*.whl; do python3 -m zipfile -e "$wheel" "$tools"; done
    mkdir -p "$tools/root/include" "$tools/lib"
    cp -r "$tools"/nvidia/cuda_runtime/include/* "$tools/root/include/"
    cp -r "$tools"/nvidia/cuda_nvcc/include/* "$tools/root/include/"
    cp "$tools"/nvidia/cuda_nvrtc/lib/libnvrtc* "$tools/lib/"
    ln -sf libnvrtc.so.12 "$tools/lib/libnvrtc.so"
    chmod +x "$tools/nvidia/cuda_nvcc/bin/ptxas"
    rm "$tools"/*.whl
    touch "$tools/ready"
fi
cc -shared -fPIC -O1 -o "$tools/lib/libcuda.so.1" targets/cuda-stub.c
ln -sf libcuda.so.1 "$tools/lib/libcuda.so"

program=${1:-}
if [ -z "$program" ]; then
    cargo build --locked -p edge-lmm-cli --features cuda
    program=${CARGO_TARGET_DIR:-target}/debug/edge-lmm
fi

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
mkdir "$work/ptx"
# Uses a new cache, because cached kernels are not compiled.
run() {
    env LD_LIBRARY_PATH="$tools/lib" CUDA_PATH="$tools/root" XDG_CACHE_HOME="$work" CUDA_STUB_PTX="$work/ptx" "$@"
}
run "$program" doctor --cuda >"$work/kernels"
for kind in 'product q4' 'encoder attention' 'prefill attention'; do
    grep -q "^| $kind.*matrix" "$work/kernels" || {
        echo "error: no kernel of '$kind' uses matrix operations"
        exit 1
    }
done

count=0
for ptx in "$work"/ptx/*.ptx; do
    name=$(grep -m1 -o 'entry [A-Za-z0-9_]*' "$ptx" | cut -d' ' -f2)
    "$tools/nvidia/cuda_nvcc/bin/ptxas" -arch=sm_87 -v "$ptx" -o /dev/null 2>"$work/log" || {
        cat "$work/log"
        exit 1
    }
    registers=$(grep -o 'Used [0-9]* registers' "$work/log")
    echo "$name: $registers"
    spills=$(grep -o '[0-9]* bytes spill stores' "$work/log" | cut -d' ' -f1)
    if [ "${spills:-0}" -gt 0 ]; then
        echo "  spills $spills bytes of registers"
    fi
    case $name in
    *_kernel*)
        # A few spilled registers are negligible compared with the arithmetic of such a kernel.
        if [ "${spills:-0}" -gt 64 ]; then
            echo "error: $name spills more than 64 bytes of registers"
            exit 1
        fi
        ;;
    esac
    count=$((count + 1))
done

model=models/demo/qwen2vl-tiny.bpk
answer() {
    run "$program" run "$model" --device cuda --prompt 'what is this?' --max-tokens 4 --ignore-eos "$@"
}
answer >"$work/answer" || exit 1
for bytes in 1000000 8000000; do
    if CUDA_STUB_MEMORY=$bytes answer --ignore-memory >"$work/answer" 2>"$work/error"; then
        echo "error: a device of $bytes bytes is enough for $model"
        exit 1
    fi
    grep -q 'bytes were requested, .* are held' "$work/error" || {
        cat "$work/error"
        echo "error: running out of $bytes bytes is not reported"
        exit 1
    }
done
if CUDA_STUB_VERSION=11040 answer >"$work/answer" 2>"$work/error" || ! grep -q 'CUDA 11.4' "$work/error"; then
    cat "$work/error"
    echo "error: a driver that is too old is not reported"
    exit 1
fi
echo "$count kernels compile for compute capability 8.7; a model answers and reports when memory runs out"
