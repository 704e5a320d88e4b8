#!/bin/sh
# Tests and benchmarks this project on a machine with an NVIDIA GPU in less than ten minutes:
# kernels, every stage of the small test models against reference values, a question set, and
# timings of records compared with PyTorch on the same GPU.
#
#     targets/gpu-check.sh --programs FOLDER [--dry-run] [RECORD.bpk=CHECKPOINT]...
#
# FOLDER contains `edge-lmm`, built with `--features cuda`, and `edge-lmm-convert`. RECORD is timed;
# CHECKPOINT is a Hugging Face folder of the same sizes, of which only config.json is read: PyTorch
# uses random weights, which take the same time. This requires `torch` and `transformers`; without
# them only the timings of the records are printed. --dry-run prints the commands and requires
# neither a GPU nor the programs.
set -eu
cd "$(dirname "$0")/.."
command -v python3 >/dev/null || {
    echo "error: python3 is missing" >&2
    exit 1
}
exec python3 targets/gpu_check.py "$@"
