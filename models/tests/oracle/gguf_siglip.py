"""llama.cpp files of SmolVLM2 and Gemma 3 with images: a language model, and a SigLIP tower with its projector.

Names and metadata as llama.cpp's converter (`convert_hf_to_gguf.py`) writes them. Matrices are f16 except for the table of positions, vectors f32.
"""

import json
import re
from pathlib import Path

import gguf
import numpy as np

from gguf_llama import TOWER_LAYER

TOP = {
    "embeddings.patch_embedding": "v.patch_embd", "embeddings.position_embedding": "v.position_embd", "post_layernorm": "v.post_ln",
}  # fmt: skip
PROJECTOR = {
    "model.connector.modality_projection.proj.weight": "mm.model.fc.weight",
    "multi_modal_projector.mm_input_projection_weight": "mm.input_projection.weight",
    "multi_modal_projector.mm_soft_emb_norm.weight": "mm.soft_emb_norm.weight",
}


def tensors(state: dict, prefix: str):
    """Yields (GGUF name, values) of the tower, whose names start with `prefix`, and of the projector."""
    for name, value in state.items():
        if name in PROJECTOR:
            yield PROJECTOR[name], value + 1 if "norm" in name else value
        if not name.startswith(prefix):
            continue
        stem, kind = name.removeprefix(prefix).rsplit(".", 1)
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", stem)
        yield (f"v.blk.{layer[1]}.{TOWER_LAYER[layer[2]]}" if layer else TOP[stem]) + f".{kind}", value


def metadata(w: gguf.GGUFWriter, folder: Path, config: dict, hidden: int) -> None:
    v = config["vision_config"]
    pre = json.loads((folder / "preprocessor_config.json").read_text())
    w.add_clip_has_vision_encoder(True)
    w.add_vision_projection_dim(hidden)
    w.add_vision_image_size(v["image_size"])
    w.add_vision_patch_size(v["patch_size"])
    w.add_vision_embedding_length(v["hidden_size"])
    w.add_vision_feed_forward_length(v["intermediate_size"])
    w.add_vision_block_count(v["num_hidden_layers"])
    w.add_vision_head_count(v["num_attention_heads"])
    w.add_vision_image_mean(pre["image_mean"])
    w.add_vision_image_std(pre["image_std"])
    w.add_vision_attention_layernorm_eps(v.get("layer_norm_eps", 1e-6))
    w.add_vision_use_gelu(True)
    if config["model_type"] == "gemma3":
        w.add_string("clip.projector_type", "gemma3")
        scale = v["image_size"] // v["patch_size"] // int(config["mm_tokens_per_image"] ** 0.5)
        w.add_uint32("clip.vision.projector.scale_factor", scale)
    else:
        w.add_string("clip.projector_type", "idefics3")
        w.add_uint32("clip.vision.projector.scale_factor", config["scale_factor"])
        w.add_uint32("clip.vision.preproc_image_size", pre["size"]["longest_edge"])


def text_config(config: dict) -> dict:
    """The language model's section, with the defaults of its class."""
    text = dict(config["text_config"])
    if config["model_type"] == "gemma3":
        text = {
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "max_position_embeddings": 131072,
            "sliding_window_pattern": 6, "tie_word_embeddings": True,
        } | text  # fmt: skip
    return text
