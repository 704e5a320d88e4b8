#!/usr/bin/env python3
"""Writes a checkpoint of a published model's shape with random weights, to measure time and memory without a download.

    python3 -m venv V && V/bin/pip install numpy torch transformers gguf
    V/bin/python targets/random_checkpoint.py qwen3-vl-2b --out qwen3-vl-2b
    V/bin/python models/tests/oracle/export_gguf.py qwen3-vl-2b --out .      # the same for llama.cpp
    edge-lmm-convert qwen3-vl-2b -o qwen3-vl-2b.bpk --method nearest

The tokenizer is that of the family's small test checkpoint; further ids of the vocabulary have no text. The tensors are those
of the class in `transformers`, in bf16, normally distributed with the variance that keeps the magnitude of activations.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parent.parent / "models" / "tests" / "data"
SHARD = 2 * 10**9
# Name: the test checkpoint, what differs in its config.json, and in its preprocessor_config.json.
MODELS = {
    "smolvlm-500m": (
        "smolvlm2-odd",
        {
            "scale_factor": 4, "vocab_size": 49280,
            "text_config": {
                "head_dim": 64, "hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15,
                "num_hidden_layers": 32, "num_key_value_heads": 5, "pixel_shuffle_factor": 4, "vocab_size": 49280,
            },
            "vision_config": {
                "hidden_size": 768, "image_size": 512, "intermediate_size": 3072, "num_attention_heads": 12,
                "num_hidden_layers": 12, "patch_size": 16, "max_image_size": {"longest_edge": 512}, "size": {"longest_edge": 2048},
            },
        },
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    ),
    "qwen3-vl-2b": (
        "qwen3vl-odd",
        {
            "text_config": {
                "head_dim": 128, "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16, "num_hidden_layers": 28,
                "num_key_value_heads": 8, "rope_scaling": {"mrope_section": [24, 20, 20]}, "vocab_size": 151936,
            },
            "vision_config": {
                "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "depth": 24, "out_hidden_size": 2048,
                "deepstack_visual_indexes": [5, 11, 17], "num_position_embeddings": 2304,
            },
        },
        {"size": {"longest_edge": 16777216, "shortest_edge": 65536}},
    ),
    "gemma3-4b": (
        "gemma3-odd",
        {
            "mm_tokens_per_image": 256,
            "text_config": {
                "head_dim": 256, "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 8, "num_hidden_layers": 34,
                "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 1024, "vocab_size": 262208,
            },
            "vision_config": {
                "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27,
            },
        },
        {"size": {"height": 896, "width": 896}, "image_seq_length": 256},
    ),
    "qwen2-vl-7b": (
        "qwen2vl-odd",
        {
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768,
            "rope_scaling": {"mrope_section": [16, 24, 24]}, "vocab_size": 152064,
            "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": 3584},
        },
        {"min_pixels": 3136, "max_pixels": 12845056},
    ),
}  # fmt: skip


def merge(old: dict, new: dict) -> dict:
    """Replaces values of `old`, section by section."""
    return old | {k: merge(old[k], v) if isinstance(v, dict) and k in old else v for k, v in new.items()}


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
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--layers", type=int, help="layers of the language model, if fewer are enough")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    odd, config, preprocessor = MODELS[arguments.model]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for file in (DATA / odd).glob("*.json"):
        shutil.copyfile(file, arguments.out / file.name)
    changes = {"config.json": config, "preprocessor_config.json": preprocessor}
    if arguments.layers:
        section = config.get("text_config", config)
        section["num_hidden_layers"] = arguments.layers
    for name, new in changes.items():
        file = arguments.out / name
        file.write_text(json.dumps(merge(json.loads(file.read_text()), new), indent=1))
    write_weights(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
