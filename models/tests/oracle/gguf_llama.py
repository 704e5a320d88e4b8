"""llama.cpp files of the families around Llama: LLaVA-1.5, and Llama, Qwen2, Phi-3, Gemma 3 without an encoder.

Names and metadata as llama.cpp's converter (`convert_hf_to_gguf.py`) writes them. Matrices are f16, vectors f32.
"""

import json
import math
import re
from pathlib import Path

import gguf
import numpy as np
from gguf import TokenType

from family import CLIP_MEAN, CLIP_STD

LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
GEMMA_LAYER = LAYER | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TOWER_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1", "layer_norm2": "ln2", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
}  # fmt: skip
TOWER_TOP = {
    "embeddings.class_embedding": "v.class_embd", "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.position_embedding.weight": "v.position_embd.weight", "pre_layrnorm.weight": "v.pre_ln.weight",
    "pre_layrnorm.bias": "v.pre_ln.bias", "post_layernorm.weight": "v.post_ln.weight", "post_layernorm.bias": "v.post_ln.bias",
}  # fmt: skip


def halves_interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a Llama query or key matrix in llama.cpp's order: element i of a head beside element i + half."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def text_tensors(state: dict, config: dict, prefix: str):
    """Yields (GGUF name, values) of the language model whose names start with `prefix`."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, value in state.items():
        stem, kind = name.removeprefix(prefix).rsplit(".", 1)
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        if not name.startswith(prefix) or not (layer or stem in TOP):
            continue
        gemma = config["model_type"] == "gemma3_text"
        to = (GEMMA_LAYER if gemma else LAYER)[layer[2]] if layer else TOP[stem]
        if gemma and "norm" in to:
            value = value + 1
        if to == "attn_q_norm":
            # The files have no scale of scores: that of the size of a head holds.
            value = value * math.sqrt(config["head_dim"] / config["query_pre_attn_scalar"])
        if config["model_type"] == "llama" and to in heads:
            value = halves_interleaved(value, heads[to])
        yield f"blk.{layer[1]}.{to}.{kind}" if layer else f"{to}.{kind}", value


def rope_tensors(config: dict):
    """Factors of the rotary frequencies, which GGUF keeps as tensors."""
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "longrope":
        for length in ("long", "short"):
            yield f"rope_factors_{length}.weight", np.array(scaling[f"{length}_factor"], dtype=np.float32)
    if kind == "llama3":
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
        values = []
        for i in range(0, head, 2):
            turns = scaling["original_max_position_embeddings"] / (2 * math.pi * config["rope_theta"] ** (i / head))
            smooth = min(max((turns - low) / (high - low), 0), 1)
            values.append(1 / ((1 - smooth) / factor + smooth))
        yield "rope_freqs.weight", np.array(values, dtype=np.float32)


def text_metadata(w: gguf.GGUFWriter, c: dict) -> None:
    head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_freq_base(c["rope_theta"])
    w.add_rope_dimension_count(int(head * c.get("partial_rotary_factor", 1)))
    if head * c["num_attention_heads"] != c["hidden_size"]:
        w.add_key_length(head)
        w.add_value_length(head)
    scaling = c.get("rope_scaling") or {}
    if "linear" in (scaling.get("type"), scaling.get("rope_type")):
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(scaling["factor"])
    if c["model_type"] == "gemma3_text":
        w.add_sliding_window(c["sliding_window"])
        w.add_uint32("gemma3.attention.sliding_window_pattern", c["sliding_window_pattern"])
        w.add_float32("gemma3.rope.freq_base_swa", c["rope_local_base_freq"])
    if c["model_type"] == "phi3":
        original, most = c["original_max_position_embeddings"], c["max_position_embeddings"]
        w.add_rope_scaling_orig_ctx_len(original)
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(most / original) / math.log(original)))
        w.add_sliding_window(c["sliding_window"])


def add_tokenizer(w: gguf.GGUFWriter, folder: Path, rows: int) -> None:
    """Byte-level BPE, or SentencePiece BPE: a piece's score is the place of the first merge that makes it."""
    tok = json.loads((folder / "tokenizer.json").read_text())
    about = json.loads((folder / "tokenizer_config.json").read_text())
    model, added = tok["model"], {a["id"]: a for a in tok["added_tokens"]}
    pieces = {i: t for t, i in model["vocab"].items()} | {i: a["content"] for i, a in added.items()}
    tokens = [pieces.get(i, f"[PAD{i}]") for i in range(rows)]
    types = [TokenType.NORMAL if i in pieces else TokenType.UNUSED for i in range(rows)]
    for i, a in added.items():
        types[i] = TokenType.CONTROL if a["special"] else TokenType.USER_DEFINED
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    if model.get("byte_fallback"):
        rank = {}
        for n, (left, right) in enumerate(merges):
            rank.setdefault(left + right, n)
        types = [TokenType.BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", t) else k for t, k in zip(tokens, types)]
        types = [TokenType.UNKNOWN if t == "<unk>" else k for t, k in zip(tokens, types)]
        w.add_tokenizer_model("llama")
        w.add_tokenizer_pre("default")
        w.add_token_scores([-float(rank.get(t, len(merges))) for t in tokens])
    else:
        w.add_tokenizer_model("gpt2")
        digits = "Digits" in json.dumps(tok["pre_tokenizer"])
        w.add_tokenizer_pre("llama-bpe" if model.get("ignore_merges") else "smollm" if digits else "qwen2")
        w.add_token_merges([" ".join(m) for m in merges])
    w.add_token_list(tokens)
    w.add_token_types(types)
    config = json.loads((folder / "config.json").read_text())
    ids = {k: config.get(k, config.get("text_config", {}).get(k)) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ends = json.loads((folder / "generation_config.json").read_text())
    # The padding token of SmolVLM2 is beyond its vocabulary; llama.cpp's converter skips such tokens.
    ids = {k: ends.get(k) if v is None or (k == "pad_token_id" and v >= rows) else v for k, v in ids.items()}
    ids = {k: v[0] if isinstance(v, list) else v for k, v in ids.items()}
    w.add_bos_token_id(ids["bos_token_id"])
    w.add_eos_token_id(ids["eos_token_id"])
    w.add_pad_token_id(ids["pad_token_id"])
    w.add_add_bos_token(about.get("add_bos_token") or bool(model.get("ignore_merges")))
    w.add_add_eos_token(False)
    if "<bos>" in pieces.values():
        w.add_add_space_prefix(False)
    template = about.get("chat_template")
    if not template and (folder / "chat_template.json").exists():
        template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    if template:
        w.add_chat_template(template)


def write_text(w: gguf.GGUFWriter, folder: Path, config: dict) -> None:
    """Metadata of a language model with its tokenizer."""
    text_metadata(w, config)
    add_tokenizer(w, folder, config["vocab_size"])


def tower_tensors(state: dict):
    """Yields (GGUF name, values) of CLIP and of the projector."""
    for name, value in state.items():
        if name.startswith("multi_modal_projector."):
            yield name.replace("multi_modal_projector.linear_1", "mm.0").replace("multi_modal_projector.linear_2", "mm.2"), value
        rest = name.removeprefix("vision_tower.vision_model.")
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", rest)
        if layer:
            yield f"v.blk.{layer[1]}.{TOWER_LAYER[layer[2]]}.{layer[3]}", value
        elif rest in TOWER_TOP:
            yield TOWER_TOP[rest], value


def tower_metadata(w: gguf.GGUFWriter, config: dict) -> None:
    """All layers are written, so the file says which one the features are taken from."""
    v = config["vision_config"]
    w.add_clip_has_vision_encoder(True)
    w.add_string("clip.projector_type", "mlp")
    w.add_bool("clip.use_gelu", False)
    w.add_vision_image_size(v["image_size"])
    w.add_vision_patch_size(v["patch_size"])
    w.add_vision_embedding_length(v["hidden_size"])
    w.add_vision_feed_forward_length(v["intermediate_size"])
    w.add_vision_projection_dim(v["projection_dim"])
    w.add_vision_block_count(v["num_hidden_layers"])
    w.add_vision_head_count(v["num_attention_heads"])
    w.add_vision_attention_layernorm_eps(v["layer_norm_eps"])
    w.add_vision_image_mean(CLIP_MEAN)
    w.add_vision_image_std(CLIP_STD)
    w.add_array("clip.vision.feature_layer", [v["num_hidden_layers"] + 1 + config["vision_feature_layer"]])
