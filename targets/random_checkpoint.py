#!/usr/bin/env python3
"""Writes a checkpoint of a published model's shape with random weights, to measure time and memory without a download.

    python3 -m venv V && V/bin/pip install numpy torch transformers gguf
    V/bin/python targets/random_checkpoint.py "Qwen3-VL 2B" --out qwen3-vl-2b
    V/bin/python models/tests/oracle/export_gguf.py qwen3-vl-2b --out .      # the same for llama.cpp
    edge-lmm-convert qwen3-vl-2b -o qwen3-vl-2b.bpk --method nearest

The tokenizer is that of the family's small test checkpoint; further ids of the vocabulary have no text. The tensors are those
of the class in `transformers`, in bf16, normally distributed with the variance that keeps the magnitude of activations.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from family_estimates import MODELS, qwen2_vl, write

SHARD = 2 * 10**9
# The sizes of family_estimates.py, and one more model.
SIZES = MODELS | {"Qwen2-VL 7B": ("qwen2vl-odd", qwen2_vl(3584, 28, 4, 18944, 152064, False))}


def shapes(folder: Path) -> dict[str, tuple]:
    """Returns the tensors that the class in transformers saves for this configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    renamed = {new: old for old, new in (getattr(model, "_checkpoint_conversion_mapping", None) or {}).items()}
    found = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.get_text_config().tie_word_embeddings:
            continue
        for pattern, old in renamed.items():
            saved, count = re.subn(pattern, re.sub(r"\(.*\)", "", old.lstrip("^")), name)
            if count:
                name = saved
                break
        found[name] = tuple(value.shape)
    return found


class Values:
    """Normally distributed values, from one block at random offsets: drawing billions would take minutes."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.block = self.random.standard_normal(2**24 - 3, dtype=np.float32)

    def draw(self, name: str, shape: tuple) -> bytes:
        """Returns a tensor in bf16: a matrix that keeps the magnitude of its inputs, the scales of a norm, or a bias."""
        count = int(np.prod(shape))
        start = int(self.random.integers(len(self.block)))
        values = np.resize(np.roll(self.block, -start), count)
        is_scale = len(shape) == 1 and name.endswith("weight")
        spread = 0.02 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
        return ((values * np.float32(spread) + np.float32(is_scale)).view(np.uint32) >> 16).astype(np.uint16).tobytes()


def write_shard(path: Path, tensors: dict[str, tuple], values: Values) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors.items():
            file.write(values.draw(name, shape))


def write_weights(folder: Path, seed: int) -> None:
    """Writes shards of at most 2 GB (or one tensor) and their index."""
    shards, size = [{}], 0
    for name, shape in shapes(folder).items():
        bytes_ = 2 * int(np.prod(shape))
        if shards[-1] and size + bytes_ > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += bytes_
    values, where = Values(seed), {}
    for i, tensors in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / name, tensors, values)
        where |= dict.fromkeys(tensors, name)
        print(f"{name}: {len(tensors)} tensors", flush=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SIZES)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--layers", type=int, help="layers of the language model, if fewer are enough")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    checkpoint, (config, preprocessor) = SIZES[arguments.model]
    if arguments.layers:
        config.get("text_config", config)["num_hidden_layers"] = arguments.layers
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out, checkpoint, config, preprocessor)
    write_weights(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
