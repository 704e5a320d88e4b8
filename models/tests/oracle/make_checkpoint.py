#!/usr/bin/env python3
"""Writes a small random-weight checkpoint in the layout of the Hugging Face hub, with golden values from transformers.

    python make_checkpoint.py qwen2vl-odd --out ../data/qwen2vl-odd

The checkpoint goes to the folder, the goldens to its subfolder `goldens`. See README.md.
"""

import argparse
import importlib
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

import goldens  # noqa: E402
from family import Family  # noqa: E402


def families() -> dict[str, type[Family]]:
    """The families of the modules beside this one, by the names of their checkpoints."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        # Other modules may need packages that this one does without.
        if "(Family):\n" not in file.read_text():
            continue
        for value in vars(importlib.import_module(file.stem)).values():
            # A class without a name of its own is what families share.
            if isinstance(value, type) and issubclass(value, Family) and "name" in vars(value):
                found[value.name] = value
    return found


def main() -> None:
    known = families()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(known))
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its content is replaced")
    parser.add_argument("--seed", type=int, help="instead of the family's own")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    family = known[args.name](args.out)
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
