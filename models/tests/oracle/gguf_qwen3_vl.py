"""llama.cpp files of Qwen3-VL: the language model, and the tower with its mergers.

Names and metadata as llama.cpp's converter (`convert_hf_to_gguf.py`) writes them, with the pixel limits added. Matrices
are f16 except for the table of positions, vectors f32.
"""

import json
import re
from pathlib import Path

import gguf

TEXT_LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TEXT_TOP = {"embed_tokens": "token_embd", "norm": "output_norm"}
LAYER = {
    "norm1": "ln1", "norm2": "ln2", "attn.qkv": "attn_qkv", "attn.proj": "attn_out", "mlp.linear_fc1": "ffn_up", "mlp.linear_fc2": "ffn_down",
}  # fmt: skip
TOP = {"merger.norm": "v.post_ln", "merger.linear_fc1": "mm.0", "merger.linear_fc2": "mm.2", "pos_embed": "v.position_embd"}
DEEPSTACK = {"norm": "norm", "linear_fc1": "fc1", "linear_fc2": "fc2"}


def text_tensors(state: dict):
    """Yields (GGUF name, values) of the language model."""
    for name, value in state.items():
        stem, kind = name.removeprefix("model.language_model.").rsplit(".", 1)
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", stem)
        if name == "lm_head.weight":
            yield "output.weight", value
        elif name.startswith("model.language_model."):
            yield (f"blk.{layer[1]}.{TEXT_LAYER[layer[2]]}" if layer else TEXT_TOP[stem]) + f".{kind}", value


def text_sizes(w: gguf.GGUFWriter, c: dict) -> None:
    """Sizes of the language model, which Qwen3.5 has as well."""
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_key_length(c["head_dim"])
    w.add_value_length(c["head_dim"])


def text_metadata(w: gguf.GGUFWriter, config: dict) -> None:
    c = config["text_config"]
    w.add_block_count(c["num_hidden_layers"])
    text_sizes(w, c)
    w.add_rope_dimension_sections([*c["rope_scaling"]["mrope_section"], 0])
    w.add_rope_freq_base(c["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_num_deepstack_layers(len(config["vision_config"]["deepstack_visual_indexes"]))


def tower_tensors(state: dict, inner: list[int]):
    """Yields (GGUF name, values) of the tower and its mergers; `inner` are the blocks that those of DeepStack follow."""
    for name, value in state.items():
        if not name.startswith("model.visual."):
            continue
        stem, kind = name.removeprefix("model.visual.").rsplit(".", 1)
        layer = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
        deep = re.fullmatch(r"deepstack_merger_list\.(\d+)\.(.+)", stem)
        if layer:
            yield f"v.blk.{layer[1]}.{LAYER[layer[2]]}.{kind}", value
        elif deep:
            yield f"v.deepstack.{inner[int(deep[1])]}.{DEEPSTACK[deep[2]]}.{kind}", value
        elif stem in TOP:
            yield f"{TOP[stem]}.{kind}", value
        elif kind == "bias":
            yield "v.patch_embd.bias", value
        else:
            yield "v.patch_embd.weight", value[:, :, 0]
            yield "v.patch_embd.weight.1", value[:, :, 1]


def tower_metadata(w: gguf.GGUFWriter, folder: Path, config: dict) -> None:
    v = config["vision_config"]
    pre = json.loads((folder / "preprocessor_config.json").read_text())
    w.add_clip_has_vision_encoder(True)
    w.add_string("clip.projector_type", "qwen3vl_merger")
    w.add_vision_projection_dim(config["text_config"]["hidden_size"])
    w.add_vision_image_size(int(v["num_position_embeddings"] ** 0.5) * v["patch_size"])
    w.add_vision_patch_size(v["patch_size"])
    w.add_vision_embedding_length(v["hidden_size"])
    w.add_vision_feed_forward_length(v["intermediate_size"])
    w.add_vision_block_count(v["depth"])
    w.add_vision_head_count(v["num_heads"])
    w.add_vision_image_mean(pre["image_mean"])
    w.add_vision_image_std(pre["image_std"])
    w.add_vision_min_pixels(pre["size"]["shortest_edge"])
    w.add_vision_max_pixels(pre["size"]["longest_edge"])
    w.add_vision_use_gelu(True)
    w.add_vision_spatial_merge_size(v["spatial_merge_size"])
    w.add_vision_attention_layernorm_eps(config["text_config"]["rms_norm_eps"])
    w.add_vision_is_deepstack_layers([i in v["deepstack_visual_indexes"] for i in range(v["depth"])])
