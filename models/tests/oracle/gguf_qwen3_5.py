"""llama.cpp files of Qwen3.5: the language model. The tower is that of Qwen3-VL (`gguf_qwen3_vl.py`).

Names and metadata as llama.cpp's converter (`conversion/qwen.py`) writes them. Value heads of the delta rules are sorted by their
number within the group of a key head, decay rates are stored as -exp(A_log), and the scales of norms plus 1, except within a delta
rule. The layer that predicts further tokens is one more block. Matrices are f16 except for the kernels of the convolutions, vectors
f32.
"""

import json
import re
from pathlib import Path

import gguf
import numpy as np

from gguf_qwen3_vl import text_sizes

LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta", "linear_attn.conv1d": "ssm_conv1d", "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}  # fmt: skip
VECTORS = {"linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias"}
TOP = {"embed_tokens": "token_embd", "norm": "output_norm"}
FURTHER = {"fc": "eh_proj", "pre_fc_norm_embedding": "enorm", "pre_fc_norm_hidden": "hnorm", "norm": "shared_head_norm"}
# Kernels, which llama.cpp reads in f32.
KERNELS = ".ssm_conv1d.weight"


def tiled(value: np.ndarray, first: int, heads: list[int]) -> np.ndarray:
    """Rows from `first` on, those of value heads by key head, sorted by their number for a key head. `heads` are the key heads and
    the value heads of each."""
    values = value[first:]
    order = values.reshape(*heads, -1, *values.shape[1:]).swapaxes(0, 1)
    return np.concatenate([value[:first], order.reshape(values.shape)])


def stored(stem: str, value: np.ndarray, c: dict) -> np.ndarray:
    """The values of a tensor as llama.cpp stores them."""
    keys = c["linear_num_key_heads"]
    heads = [keys, c["linear_num_value_heads"] // keys]
    name = stem.rsplit(".", 1)[-1]
    if "linear_attn" not in stem:
        return value + 1 if "norm" in name else value
    if name == "out_proj":
        return tiled(value.T, 0, heads).T
    if name == "conv1d":
        value = value.squeeze(1)
    if name == "A_log":
        value = -np.exp(value)
    if name == "norm":
        return value
    return tiled(value, 2 * keys * c["linear_key_head_dim"] if name in ("in_proj_qkv", "conv1d") else 0, heads)


def text_tensors(state: dict, c: dict):
    """Yields (GGUF name, values) of the language model."""
    further = c["num_hidden_layers"]
    for name, value in state.items():
        own = name.startswith("mtp.")
        stem = name.removeprefix("model.language_model.").removeprefix("mtp.").removesuffix(".weight")
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", stem)
        if name.startswith("model.visual."):
            continue
        if layer:
            block = f"blk.{int(layer[1]) + (further if own else 0)}"
            to = f"{block}.{VECTORS[layer[2]]}" if layer[2] in VECTORS else f"{block}.{LAYER[layer[2]]}.weight"
        elif own:
            to = f"blk.{further}.nextn.{FURTHER[stem]}.weight"
        else:
            to = "output.weight" if name == "lm_head.weight" else f"{TOP[stem]}.weight"
        yield to, np.ascontiguousarray(stored(stem, value, c))


def text_metadata(w: gguf.GGUFWriter, config: dict) -> None:
    c = config["text_config"]
    rope = c["rope_parameters"]
    w.add_block_count(c["num_hidden_layers"] + c["mtp_num_hidden_layers"])
    text_sizes(w, c)
    w.add_rope_dimension_sections([*rope["mrope_section"], 0])
    w.add_rope_freq_base(rope["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_ssm_conv_kernel(c["linear_conv_kernel_dim"])
    w.add_ssm_state_size(c["linear_key_head_dim"])
    w.add_ssm_group_count(c["linear_num_key_heads"])
    w.add_ssm_time_step_rank(c["linear_num_value_heads"])
    w.add_ssm_inner_size(c["linear_value_head_dim"] * c["linear_num_value_heads"])
    w.add_full_attention_interval(c["full_attention_interval"])
    w.add_rope_dimension_count(int(c["head_dim"] * rope["partial_rotary_factor"]))
    w.add_nextn_predict_layers(c["mtp_num_hidden_layers"])


def tokens(folder: Path, config: dict) -> dict:
    """The number of tokens and their roles, in the form that `add_tokenizer` takes."""
    ends = json.loads((folder / "generation_config.json").read_text())
    return {
        "vocab_size": config["text_config"]["vocab_size"], "eos_token_id": ends["eos_token_id"][0], "bos_token_id": ends["bos_token_id"],
    }  # fmt: skip
