"""Stages and names of modules, from their paths in the model classes of `transformers`.

A report of this runtime and one of a PyTorch model can be compared because both use the same names:
`model.layers.3.self_attn` becomes `text.layers.3.attention`, `visual.blocks.0.mlp` becomes
`vision.blocks.0.mlp`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable

TEXT = "text"
"""Stage of the language model until the length of its inputs tells `prefill` from `decode`."""
MODEL = "model"
"""Stage of a model that consists of none of the known parts."""

# The first expression that matches decides. A projector may be part of the encoder.
_STAGES: list[tuple[str, re.Pattern[str]]] = [
    (stage, re.compile(rf"^(?:.*\.)?(?:{names})(?:\.|$)"))
    for stage, names in [
        (
            "projector",
            r"multi_modal_projector|visual\.merger|visual\.deepstack_merger_list|connector|qformer"
            r"|language_projection|img_projection|mm_projector",
        ),
        ("audio", r"audio_tower|audio_model|audio_encoder"),
        (
            "vision",
            r"visual|vision_tower|vision_model|vision_encoder|image_encoder|img_processor",
        ),
        (TEXT, r"language_model|text_model|lm_head|embed_tokens"),
    ]
]

# Modules that only wrap the layers of a tower or of a language model.
_WRAPPERS = {
    "vision": {"vision_model", "encoder", "transformer", "model"},
    "audio": {"encoder", "model"},
    TEXT: {"model", "language_model", "text_model", "transformer", "decoder"},
}

# The names of parts of a layer in this runtime.
_PARTS = {
    "self_attn": "attention",
    "self_attention": "attention",
    "attn": "attention",
    "encoder_attn": "cross_attention",
    "crossattention": "cross_attention",
    "patch_embedding": "patch_embed",
    "input_layernorm": "attention.norm",
    "layer_norm1": "attention.norm",
    "norm1": "attention.norm",
    "self_attn_layer_norm": "attention.norm",
    "post_attention_layernorm": "mlp.norm",
    "layer_norm2": "mlp.norm",
    "norm2": "mlp.norm",
    "final_layer_norm": "mlp.norm",
    "ln_q": "norm",
}

_PROJECTIONS = {"o_proj": "out", "out_proj": "out", "proj": "out", "qkv_proj": "qkv"}


@dataclass(frozen=True)
class Name:
    """Place of a module in a report."""

    stage: str | None
    """Stage, [TEXT], or None for the stage of the caller."""
    path: str
    """Path within the stage, empty for a module that is the stage itself."""


def names(paths: Iterable[str]) -> dict[str, Name]:
    """Returns the names of all modules of a model. The root has the path ``""``."""
    paths = list(paths)
    found = {path: _stage(path) for path in paths}
    stages = {stage for stage, _ in found.values() if stage}
    if not stages:
        return {path: Name(MODEL, path) for path in paths}
    # The parts of a language model that no expression names: `model.layers`.
    rest = TEXT if TEXT in stages else (stages.pop() if len(stages) == 1 else None)
    result: dict[str, Name] = {}
    taken: set[tuple[str | None, str]] = set()
    for path in paths:
        stage, inside = found[path]
        if stage is None:
            stage, inside = rest, path
        renamed = _rename(inside, stage)
        # Two modules never share a name, or their times would be added up.
        if renamed and (stage, renamed) in taken:
            renamed = inside
        taken.add((stage, renamed))
        result[path] = Name(stage, renamed)
    return result


def _stage(path: str) -> tuple[str | None, str]:
    for stage, expression in _STAGES:
        match = expression.match(path)
        if match is None:
            continue
        inside = path[match.end() :]
        kept = match.group(0).rstrip(".").rsplit(".", 1)[-1]
        if kept in ("lm_head", "embed_tokens", "qformer", "deepstack_merger_list"):
            inside = f"{kept}.{inside}".rstrip(".")
        return stage, inside
    return None, path


def _rename(inside: str, stage: str | None) -> str:
    parts = inside.split(".") if inside else []
    wrappers = _WRAPPERS.get(stage or "", set())
    while parts and parts[0] in wrappers:
        del parts[0]
    if parts == ["lm_head"]:
        return "head"
    if parts == ["embed_tokens"]:
        return "embedding"
    renamed: list[str] = []
    for part in parts:
        within = any(name.endswith("attention") for name in renamed)
        renamed.append((_PROJECTIONS.get(part) if within else None) or _PARTS.get(part, part))
    return ".".join(renamed)


def full_name(stage: str, path: str) -> str:
    """Returns the name of a module in a report; `stage` is one of a report."""
    if not path:
        return stage
    if stage in ("prefill", "decode"):
        # As in this runtime: the embedding belongs to the stage, the layers to the text model.
        return f"{stage}.{path}" if path == "embedding" else f"text.{path}"
    return f"{stage}.{path}"
