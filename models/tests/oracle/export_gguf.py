#!/usr/bin/env python3
"""Writes a checkpoint folder as llama.cpp files in f16: the language model and, where there is one, the vision tower (mmproj).

    python export_gguf.py ../data/qwen2vl-odd --out ../data/qwen2vl-odd-gguf

Takes Qwen2-VL, Qwen3-VL (`gguf_qwen3_vl.py`), Qwen3.5 (`gguf_qwen3_5.py`), SmolVLM2 and Gemma 3 with images (`gguf_siglip.py`),
LLaVA-1.5, Llama, Qwen2, Phi-3 and Gemma 3 (the latter five: `gguf_llama.py`). Names and metadata are those of llama.cpp's own
converter, with the pixel limits of the Qwen models added. Matrices are f16, vectors f32.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

import gguf_llama
import gguf_qwen3_5
import gguf_qwen3_vl
import gguf_siglip

TEXT_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TEXT_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
VISION_LAYER = {"norm1": "ln1", "norm2": "ln2", "attn.proj": "attn_out", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}
# The table of positions, which llama.cpp interpolates in f32.
POSITIONS = "v.position_embd.weight"
VISION_TOP = {"visual.merger.ln_q": "v.post_ln", "visual.merger.mlp.0": "mm.0", "visual.merger.mlp.2": "mm.2"}


class State(Mapping):
    """All tensors of a checkpoint, read as f32 when they are asked for, so that large checkpoints fit into memory."""

    def __init__(self, folder: Path):
        self.places = {}
        for file in sorted(folder.glob("*.safetensors")):
            data = np.memmap(file, dtype=np.uint8, mode="r")
            length = int.from_bytes(data[:8].tobytes(), "little")
            for name, about in json.loads(data[8 : 8 + length].tobytes()).items():
                if name != "__metadata__":
                    start, end = (8 + length + offset for offset in about["data_offsets"])
                    self.places[name] = (data[start:end], about["dtype"], about["shape"])

    def __getitem__(self, name: str) -> np.ndarray:
        data, dtype, shape = self.places[name]
        if dtype == "BF16":
            values = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = data.view({"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)
        return values.reshape(shape)

    def __iter__(self):
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def text_tensors(state: dict):
    """Yields (GGUF name, values) of the language model."""
    for name, value in state.items():
        stem, kind = name.rsplit(".", 1)
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        if layer:
            yield f"blk.{layer[1]}.{TEXT_LAYER[layer[2]]}.{kind}", value
        elif stem in TEXT_TOP:
            yield f"{TEXT_TOP[stem]}.{kind}", value


def vision_tensors(state: dict):
    """Yields (GGUF name, values) of the tower; splits the fused projection and the two frames of the patch kernel."""
    for name, value in state.items():
        stem, kind = name.rsplit(".", 1)
        layer = re.fullmatch(r"visual\.blocks\.(\d+)\.(.+)", stem)
        if layer and layer[2] == "attn.qkv":
            for letter, part in zip("qkv", np.split(value, 3)):
                yield f"v.blk.{layer[1]}.attn_{letter}.{kind}", part
        elif layer:
            yield f"v.blk.{layer[1]}.{VISION_LAYER[layer[2]]}.{kind}", value
        elif stem in VISION_TOP:
            yield f"{VISION_TOP[stem]}.{kind}", value
        elif stem == "visual.patch_embed.proj":
            yield "v.patch_embd.weight", value[:, :, 0]
            yield "v.patch_embd.weight.1", value[:, :, 1]


def chat_template(folder: Path) -> str:
    alone = folder / "chat_template.jinja"
    return alone.read_text() if alone.exists() else json.loads((folder / "chat_template.json").read_text())["chat_template"]


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict, pre: str = "qwen2") -> None:
    tok = json.loads((folder / "tokenizer.json").read_text())
    special = {a["id"]: a for a in tok["added_tokens"]}
    pieces = {i: t for t, i in tok["model"]["vocab"].items()} | {i: a["content"] for i, a in special.items()}
    tokens = [pieces.get(i, f"[PAD{i}]") for i in range(config["vocab_size"])]
    types = [gguf.TokenType.NORMAL if i in pieces else gguf.TokenType.UNUSED for i in range(len(tokens))]
    for i, a in special.items():
        types[i] = gguf.TokenType.CONTROL if a["special"] else gguf.TokenType.USER_DEFINED
    ends = json.loads((folder / "generation_config.json").read_text())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tok["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_pad_token_id(ends["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat_template(folder))


def text_metadata(w: gguf.GGUFWriter, c: dict) -> None:
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_rope_dimension_sections([*c["rope_scaling"]["mrope_section"], 0])
    w.add_rope_freq_base(c["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])


def vision_metadata(w: gguf.GGUFWriter, c: dict, pre: dict) -> None:
    v = c["vision_config"]
    w.add_clip_has_vision_encoder(True)
    w.add_vision_projection_dim(c["hidden_size"])
    w.add_vision_image_size(560)
    w.add_vision_min_pixels(pre["min_pixels"])
    w.add_vision_max_pixels(pre["max_pixels"])
    w.add_vision_patch_size(v["patch_size"])
    w.add_vision_embedding_length(v["embed_dim"])
    w.add_vision_feed_forward_length(int(v["embed_dim"] * v["mlp_ratio"]))
    w.add_vision_block_count(v["depth"])
    w.add_vision_head_count(v["num_heads"])
    w.add_vision_image_mean(pre["image_mean"])
    w.add_vision_image_std(pre["image_std"])
    w.add_string("clip.projector_type", "qwen2vl_merger")
    w.add_vision_attention_layernorm_eps(1e-6)


def finish(writer: gguf.GGUFWriter, tensors, exact: str = "-") -> None:
    """Writes the file; matrices whose names end with `exact` are f32."""
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, value in tensors:
        writer.add_tensor(name, value.astype(np.float16 if value.ndim > 1 and not name.endswith(exact) else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    args = parser.parse_args()
    config = json.loads((args.checkpoint / "config.json").read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    special = {
        "qwen2_vl": write_qwen2_vl, "qwen3_vl": write_qwen3_vl, "qwen3_5": write_qwen3_5, "llava": write_llava, "smolvlm": write_siglip,
        "gemma3": write_siglip,
    }  # fmt: skip
    write = special.get(config["model_type"], write_text)
    write(args.checkpoint, args.checkpoint.resolve().name, config, args.out)


def open_writer(path: Path, arch: str, name: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, arch, use_temp_file=True)
    writer.add_type(gguf.GGUFType.MMPROJ if arch == "clip" else gguf.GGUFType.MODEL)
    writer.add_name(name)
    return writer


def write_qwen2_vl(folder: Path, name: str, config: dict, out: Path) -> None:
    state = State(folder)
    text = open_writer(out / f"{name}-f16.gguf", "qwen2vl", name)
    text_metadata(text, config)
    add_tokenizer(text, folder, config)
    finish(text, text_tensors(state))
    tower = open_writer(out / f"mmproj-{name}-f16.gguf", "clip", name)
    vision_metadata(tower, config, json.loads((folder / "preprocessor_config.json").read_text()))
    finish(tower, vision_tensors(state))


def write_qwen3_vl(folder: Path, name: str, config: dict, out: Path) -> None:
    state = State(folder)
    text = open_writer(out / f"{name}-f16.gguf", "qwen3vl", name)
    gguf_qwen3_vl.text_metadata(text, config)
    add_tokenizer(text, folder, config["text_config"])
    finish(text, gguf_qwen3_vl.text_tensors(state))
    write_qwen3_tower(folder, name, config, state, out)


def write_qwen3_5(folder: Path, name: str, config: dict, out: Path) -> None:
    state = State(folder)
    text = open_writer(out / f"{name}-f16.gguf", "qwen35", name)
    gguf_qwen3_5.text_metadata(text, config)
    add_tokenizer(text, folder, gguf_qwen3_5.tokens(folder, config), "qwen35")
    finish(text, gguf_qwen3_5.text_tensors(state, config["text_config"]), gguf_qwen3_5.KERNELS)
    write_qwen3_tower(folder, name, config, state, out)


def write_qwen3_tower(folder: Path, name: str, config: dict, state: dict, out: Path) -> None:
    tower = open_writer(out / f"mmproj-{name}-f16.gguf", "clip", name)
    gguf_qwen3_vl.tower_metadata(tower, folder, config)
    finish(tower, gguf_qwen3_vl.tower_tensors(state, config["vision_config"]["deepstack_visual_indexes"]), POSITIONS)


def write_siglip(folder: Path, name: str, config: dict, out: Path) -> None:
    state, text_config = State(folder), gguf_siglip.text_config(config)
    gemma = config["model_type"] == "gemma3"
    text = open_writer(out / f"{name}-f16.gguf", "gemma3" if gemma else "llama", name)
    gguf_llama.write_text(text, folder, text_config)
    if gemma:
        finish(text, gguf_llama.text_tensors(state, text_config, "language_model."))
    else:
        renamed = {k.replace("model.text_model.", "model."): v for k, v in state.items() if k.startswith(("model.text_model.", "lm_head."))}
        finish(text, gguf_llama.text_tensors(renamed, text_config, ""))
    tower = open_writer(out / f"mmproj-{name}-f16.gguf", "clip", name)
    gguf_siglip.metadata(tower, folder, config, text_config["hidden_size"])
    finish(tower, gguf_siglip.tensors(state, "vision_tower.vision_model." if gemma else "model.vision_model."), POSITIONS)


def write_llava(folder: Path, name: str, config: dict, out: Path) -> None:
    state = State(folder)
    text = open_writer(out / f"{name}-f16.gguf", "llama", name)
    gguf_llama.write_text(text, folder, config["text_config"])
    finish(text, gguf_llama.text_tensors(state, config["text_config"], "language_model."))
    tower = open_writer(out / f"mmproj-{name}-f16.gguf", "clip", name)
    gguf_llama.tower_metadata(tower, config)
    finish(tower, gguf_llama.tower_tensors(state))


def write_text(folder: Path, name: str, config: dict, out: Path) -> None:
    text = open_writer(out / f"{name}-f16.gguf", config["model_type"].removesuffix("_text"), name)
    gguf_llama.write_text(text, folder, config)
    finish(text, [*gguf_llama.rope_tensors(config), *gguf_llama.text_tensors(State(folder), config, "")])


if __name__ == "__main__":
    main()
