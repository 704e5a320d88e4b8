#!/usr/bin/env python3
"""Writes a small random-weight checkpoint in the layout of the Hugging Face hub, with golden values from transformers.

    python make_checkpoint.py qwen2vl-odd --out ../data/qwen2vl-odd

The checkpoint goes to the folder, the goldens to its subfolder `goldens`. See README.md.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

import goldens  # noqa: E402
from blip2 import Blip2, Blip2T5  # noqa: E402
from llava import Llava  # noqa: E402
from phi35v import Phi35V  # noqa: E402
from qwen2_audio import Qwen2Audio  # noqa: E402
from qwen_vl import Qwen2VL, Qwen25VL  # noqa: E402
from text import Llama, Llama3, Phi3, Qwen2  # noqa: E402

FAMILIES = {f.name: f for f in (Qwen2VL, Qwen25VL, Llava, Blip2, Blip2T5, Qwen2Audio, Phi35V, Llama, Llama3, Qwen2, Phi3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=FAMILIES)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its content is replaced")
    parser.add_argument("--seed", type=int, help="instead of the family's own")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    family = FAMILIES[args.name](args.out)
    family.seed = family.seed if args.seed is None else args.seed
    family.write_files()
    family.write_weights()
    family.load()
    records = goldens.write(family, args.out / "goldens")
    for r in records:
        print(json.dumps({k: r.get(k) for k in ("id", "kind", "n_input", "smallest_lead", "greedy16", "text")}, ensure_ascii=False))
    print(sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file()), "bytes")
    goldens.check(records)


if __name__ == "__main__":
    main()
