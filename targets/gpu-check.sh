#!/bin/sh
# Checks and measures this project on a machine with an NVIDIA GPU, in one command of less than ten minutes: kernels,
# every stage of the small test models against their reference values, a question set, and the timings of records next
# to PyTorch's on the same GPU.
#
#     targets/gpu-check.sh --programs FOLDER [--dry-run] [RECORD.bpk=CHECKPOINT]...
#
# FOLDER has `edge-lmm`, built with `--features cuda`, and `edge-lmm-convert`. RECORD is timed; CHECKPOINT is a Hugging
# Face folder of the same sizes, of which only config.json is read: PyTorch gets random weights, which take as long.
# For that, python3 needs `torch` and `transformers`; without them the records' own timings are printed.
# --dry-run prints what would be done and needs neither a GPU nor the programs.
set -eu
cd "$(dirname "$0")/.."
command -v python3 >/dev/null || {
    echo "error: python3 is missing" >&2
    exit 1
}
exec python3 targets/gpu_check.py "$@"
