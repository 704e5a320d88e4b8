"""Random weights that keep a network alive, and the files they are stored in.

A checkpoint drawn with a small fixed deviation fades: every layer returns almost its input, the logits are flat, and a
port that skips a layer still agrees. So each matrix has deviation gain / sqrt(fan in), which carries unit variance
through; norm weights scatter around 1, and biases are not zero.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

BIAS_STD = 0.1
NORM_STD = 0.1
EMBEDDING_STD = 0.7
QUERY_KEY_GAIN = 1.6  # attention weights that differ visibly from uniform ones
HEAD_GAIN = 3.0  # logits spread as in a trained model, so that the best token leads clearly


def draw(name: str, shape, seed: int) -> torch.Tensor:
    """Standard normal values that depend on the tensor's name and the seed only, not on the order of drawing."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def _is_norm(name: str) -> bool:
    parent = name.rsplit(".", 2)[-2].lower()
    return any(word in parent for word in ("norm", "ln_", "layrnorm"))


def _deviation(name: str, shape) -> float:
    if name.endswith("bias"):
        return BIAS_STD
    if len(shape) == 1:
        return EMBEDDING_STD
    tail = ".".join(name.split(".")[-2:])
    if any(k in tail for k in ("embed", "shared.", "relative_attention_bias", "_GN")) and "patch_embed" not in tail:
        return EMBEDDING_STD
    gain = QUERY_KEY_GAIN if any(k in name for k in ("q_proj", "k_proj", "query.", "key.")) else 1.0
    gain = HEAD_GAIN if "lm_head" in name else gain
    return gain / float(np.prod(shape[1:])) ** 0.5


@torch.no_grad()
def fill(model: torch.nn.Module, seed: int, dtype: torch.dtype, fixed=()) -> None:
    """Gives every parameter random values that `dtype` represents exactly. Names that hold one of `fixed` stay."""
    for name, p in model.named_parameters():
        if any(f in name for f in fixed):
            continue
        x = draw(name, p.shape, seed)
        if name.endswith("weight") and p.ndim == 1 and _is_norm(name):
            x = 1.0 + NORM_STD * x
        else:
            x = _deviation(name, p.shape) * x
        p.copy_(x.to(dtype))


@torch.no_grad()
def hush_rows(head: torch.Tensor, rows, factor: float = 0.25) -> None:
    """Shrinks output rows (special tokens, padding of the vocabulary) so that greedy text avoids them."""
    head[list(rows)] *= factor


@torch.no_grad()
def flip_signs(norm: torch.Tensor, seed: int) -> None:
    """Gives half of a final norm's weights a minus: with a tied head, a model would else repeat its last token for ever."""
    norm *= torch.sign(draw("signs", norm.shape, seed))


def write_shards(state: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype, shards: int) -> None:
    """Writes `state` as one `model.safetensors`, or as several with the index file that the hub uses."""
    state = {k: v.detach().to(dtype).contiguous() for k, v in state.items()}
    meta = {"format": "pt"}
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata=meta)
        return
    total = sum(v.nbytes for v in state.values())
    files, where, used = [{} for _ in range(shards)], {}, 0
    for key, value in state.items():
        n = min(used * shards // total, shards - 1)
        files[n][key] = value
        where[key] = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        used += value.nbytes
    for n, part in enumerate(files):
        save_file(part, folder / f"model-{n + 1:05}-of-{shards:05}.safetensors", metadata=meta)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
