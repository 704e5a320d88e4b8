#!/usr/bin/env python3
"""Writes the small checkpoints for the tests of the checkpoint readers.

    python -m venv venv && venv/bin/pip install gguf==0.19.0 numpy safetensors sentencepiece
    venv/bin/python make_fixtures.py

blocks/      a `qwen2` GGUF of random blocks in every quantized type that can be read, and the same values in f32 as the
             `gguf` package decodes them: the oracle of the block decoders. codebooks.gguf likewise for the types with
             codebooks or fixed levels.
llava-mini/  a LLaVA-1.5 checkpoint in the layout of the hub with a SentencePiece vocabulary trained here, the same as two
             GGUF files in the form of llama.cpp's first converters, and texts with the ids that sentencepiece gives.
phi3-mini/   a Phi-3 language model with LongRoPE in both forms.

All weights are random; nothing here answers questions.
"""

import json
import math
from pathlib import Path

import gguf
import numpy as np
import sentencepiece as spm
from gguf import GGMLQuantizationType as Type, TokenType
from safetensors.numpy import save_file

HERE = Path(__file__).parent
rng = np.random.default_rng(20)

CORPUS = """The quick brown fox jumps over the lazy dog. What colour is the circle? The circle is red and the square is blue.
How many shapes are in the picture? There are three shapes. Describe the image in one sentence, please.
A chat between a curious human and an assistant. The assistant gives helpful, detailed, and polite answers.
Numbers: 0 1 2 3 10 42 365 1984 2026 3.14159 1,000,000. Is there a triangle? Yes, there is. No, there is not.
def area(width, height):    return width * height    # comment
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Où est la bibliothèque? El niño comió piñas.
which shape is left of the square, and which one appears first; which appears last?"""

TEXTS = [
    "", " ", "a", "USER: what colour is the circle? ASSISTANT:", "  two leading spaces and  two inside", "tabs\tand\nnewlines\r\n\n",
    "1234567890 3.14159", "Zwölf große Boxkämpfer", "naïve café déjà vu", "日本語のテキスト", "emoji 🦀🚀 and ☃", "\u0000control\u0007",
    "CamelCase snake_case kebab-case", "don't can't we'll I'm", "trailing space ", "▁ literal mark", "ﬁ ligature Å Å",
    "def area(width, height): return width * height", "the the the the the", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "<0x41> <bos>",
]  # fmt: skip


# Offsets of the half-precision scales (and minima) of a block, if it does not begin with its only one.
HALVES = {
    Type.Q4_1: [0, 2], Type.Q5_1: [0, 2], Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
    Type.TQ1_0: [52], Type.TQ2_0: [64], Type.MXFP4: [], Type.NVFP4: [], Type.IQ1_M: [],
}  # fmt: skip


def random_scales(count: int) -> np.ndarray:
    """Returns half-precision scales as bytes, including subnormal and negative ones."""
    exponents = rng.uniform(-24, 4, count)
    scales = (rng.choice([-1, 1], count) * 2.0**exponents).astype(np.float16)
    return scales.view(np.uint8).reshape(-1, 2)


def random_blocks(kind: Type, rows: int, columns: int) -> np.ndarray:
    """Returns random blocks with finite scales."""
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * columns // block_len, block_bytes), dtype=np.uint8)
    for at in HALVES.get(kind, [0]):
        blocks[:, at : at + 2] = random_scales(len(blocks))
    if kind == Type.IQ1_M:
        # Four bits of the scale in the highest bits of each of the last four words.
        scales = random_scales(len(blocks)).view(np.uint16)
        for i in range(4):
            high = blocks[:, 49 + 2 * i]
            high[:] = high & 0x0F | (scales[:, 0] >> (4 * i) & 0x0F).astype(np.uint8) << 4
    if kind == Type.MXFP4:
        # All kinds of exponents: subnormal, small, large.
        blocks[:, 0] = np.resize([0, 1, 2, 127, 130, 250, 60, 125], len(blocks))
    if kind == Type.NVFP4:
        blocks[0, :4] = [0, 0x7F, 3, 0x7E]
    return blocks.reshape(rows, -1)


def blocks(name: str, expected_name: str, rows: int, vocab: int, quantized: list[Type]) -> None:
    """Writes a file of blocks/: hidden size 256 fits every type, few rows keep the files small."""
    out = HERE / "blocks"
    out.mkdir(exist_ok=True)
    hidden, layers = 256, 3
    kinds = iter(quantized)
    w = gguf.GGUFWriter(out / name, "qwen2")
    w.add_block_count(layers)
    w.add_context_length(64)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(rows)
    w.add_head_count(1)
    w.add_head_count_kv(1)
    w.add_key_length(rows)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    tokens = ["a", "b", "c", "ab", "<|end|>", "[PAD5]"][-vocab:]
    w.add_token_list(tokens)
    w.add_token_types(([TokenType.NORMAL] * 4 + [TokenType.CONTROL, TokenType.UNUSED])[-vocab:])
    w.add_token_merges(["a b"] if "a" in tokens else [])
    w.add_eos_token_id(tokens.index("<|end|>"))
    expected = {}

    def put(name: str, hf: str, shape: tuple[int, ...]) -> None:
        if len(shape) == 2 and shape[1] == hidden:
            kind = next(kinds)
        else:
            kind = Type.F32
        if kind in (Type.F32, Type.F16):
            data = rng.normal(size=shape).astype(np.float32 if kind == Type.F32 else np.float16)
            expected[hf] = data.astype(np.float32)
        elif kind == Type.BF16:
            data = gguf.quantize(rng.normal(size=shape).astype(np.float32), kind)
            expected[hf] = gguf.dequantize(data, kind)
        else:
            data = random_blocks(kind, *shape)
            expected[hf] = gguf.dequantize(data, kind)
        w.add_tensor(name, data, raw_dtype=kind)

    put("token_embd.weight", "model.embed_tokens.weight", (vocab, hidden))
    put("output.weight", "lm_head.weight", (vocab, hidden))
    put("output_norm.weight", "model.norm.weight", (hidden,))
    for n in range(layers):
        hf = f"model.layers.{n}."
        for letter in "qkv":
            put(f"blk.{n}.attn_{letter}.weight", f"{hf}self_attn.{letter}_proj.weight", (rows, hidden))
            put(f"blk.{n}.attn_{letter}.bias", f"{hf}self_attn.{letter}_proj.bias", (rows,))
        put(f"blk.{n}.attn_output.weight", f"{hf}self_attn.o_proj.weight", (hidden, rows))
        put(f"blk.{n}.ffn_gate.weight", f"{hf}mlp.gate_proj.weight", (rows, hidden))
        put(f"blk.{n}.ffn_up.weight", f"{hf}mlp.up_proj.weight", (rows, hidden))
        put(f"blk.{n}.ffn_down.weight", f"{hf}mlp.down_proj.weight", (hidden, rows))
        put(f"blk.{n}.attn_norm.weight", f"{hf}input_layernorm.weight", (hidden,))
        put(f"blk.{n}.ffn_norm.weight", f"{hf}post_attention_layernorm.weight", (hidden,))
    assert next(kinds, None) is None, "every type has its place"
    finish(w)
    save_file(expected, out / expected_name)


def finish(w: gguf.GGUFWriter) -> None:
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def sentencepiece_model(size: int) -> spm.SentencePieceProcessor:
    """Trains a model with Llama's settings."""
    (HERE / "llava-mini").mkdir(exist_ok=True)
    corpus = HERE / "llava-mini" / "corpus.tmp"
    corpus.write_text(CORPUS)
    prefix = HERE / "llava-mini" / "sp.tmp"
    spm.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(prefix), model_type="bpe", vocab_size=size, byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, allow_whitespace_only_pieces=True,
        character_coverage=0.99, num_threads=1, minloglevel=2,
    )  # fmt: skip
    sp = spm.SentencePieceProcessor(model_file=f"{prefix}.model")
    for file in (corpus, prefix.with_suffix(".tmp.model"), prefix.with_suffix(".tmp.vocab")):
        file.unlink()
    return sp


def add_sentencepiece(w: gguf.GGUFWriter, sp: spm.SentencePieceProcessor, extra: list[str], rows: int) -> None:
    """Adds the vocabulary as llama.cpp's converter does: pieces, added tokens, padding up to the embedding's rows."""
    tokens, scores, types = [], [], []
    for i in range(sp.vocab_size()):
        tokens.append(sp.id_to_piece(i))
        scores.append(sp.get_score(i))
        kind = TokenType.NORMAL
        if sp.is_unknown(i):
            kind = TokenType.UNKNOWN
        elif sp.is_control(i):
            kind = TokenType.CONTROL
        elif sp.is_byte(i):
            kind = TokenType.BYTE
        types.append(kind)
    for token in extra:
        tokens.append(token)
        scores.append(-1000.0)
        types.append(TokenType.CONTROL)
    while len(tokens) < rows:
        tokens.append(f"[PAD{len(tokens)}]")
        scores.append(-10000.0)
        types.append(TokenType.UNUSED)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_bos_token_id(sp.bos_id())
    w.add_eos_token_id(sp.eos_id())
    w.add_unk_token_id(sp.unk_id())


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Permutes query and key rows as llama.cpp: the two halves of a head interleaved."""
    rows = weight.shape[0]
    halves = weight.reshape(heads, 2, rows // heads // 2, -1)
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


def normal(*shape: int) -> np.ndarray:
    return rng.normal(scale=0.1, size=shape).astype(np.float16)


def stored(value: np.ndarray) -> np.ndarray:
    """Converts vectors to f32."""
    return value if value.ndim > 1 else value.astype(np.float32)


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def llama_layers(prefix: str, hidden: int, ffn: int, heads: int, kv: int, layers: int) -> dict[str, np.ndarray]:
    head = hidden // heads
    state = {}
    for n in range(layers):
        p = f"{prefix}model.layers.{n}."
        state |= {
            f"{p}input_layernorm.weight": normal(hidden), f"{p}post_attention_layernorm.weight": normal(hidden),
            f"{p}self_attn.q_proj.weight": normal(hidden, hidden), f"{p}self_attn.k_proj.weight": normal(kv * head, hidden),
            f"{p}self_attn.v_proj.weight": normal(kv * head, hidden), f"{p}self_attn.o_proj.weight": normal(hidden, hidden),
            f"{p}mlp.gate_proj.weight": normal(ffn, hidden), f"{p}mlp.up_proj.weight": normal(ffn, hidden),
            f"{p}mlp.down_proj.weight": normal(hidden, ffn),
        }  # fmt: skip
    return state


def clip_tower(width: int, ffn: int, layers: int, patch: int, positions: int) -> dict[str, np.ndarray]:
    t = "vision_tower.vision_model."
    state = {
        f"{t}embeddings.class_embedding": normal(width), f"{t}embeddings.patch_embedding.weight": normal(width, 3, patch, patch),
        f"{t}embeddings.position_embedding.weight": normal(positions, width),
    }  # fmt: skip
    for norm in ("pre_layrnorm", "post_layernorm"):
        state |= {f"{t}{norm}.weight": normal(width), f"{t}{norm}.bias": normal(width)}
    for n in range(layers):
        p = f"{t}encoder.layers.{n}."
        for norm in ("layer_norm1", "layer_norm2"):
            state |= {f"{p}{norm}.weight": normal(width), f"{p}{norm}.bias": normal(width)}
        shapes = {f"self_attn.{x}_proj": (width, width) for x in ("q", "k", "v", "out")} | {"mlp.fc1": (ffn, width), "mlp.fc2": (width, ffn)}
        for name, shape in shapes.items():
            state |= {f"{p}{name}.weight": normal(*shape), f"{p}{name}.bias": normal(shape[0])}
    return state


def llava() -> None:
    out = HERE / "llava-mini"
    hidden, ffn, heads, kv, layers, width, vffn, vlayers, patch, image = 32, 48, 4, 2, 2, 16, 24, 3, 14, 42
    sp = sentencepiece_model(420)
    extra = ["<image>", "<pad>"]
    rows = 424
    positions = (image // patch) ** 2
    state = {
        "language_model.model.embed_tokens.weight": normal(rows, hidden), "language_model.lm_head.weight": normal(rows, hidden),
        "language_model.model.norm.weight": normal(hidden),
        "multi_modal_projector.linear_1.weight": normal(hidden, width), "multi_modal_projector.linear_1.bias": normal(hidden),
        "multi_modal_projector.linear_2.weight": normal(hidden, hidden), "multi_modal_projector.linear_2.bias": normal(hidden),
    }  # fmt: skip
    state |= llama_layers("language_model.", hidden, ffn, heads, kv, layers)
    state |= clip_tower(width, vffn, vlayers, patch, positions + 1)
    save_file(state, out / "model.safetensors", {"format": "pt"})
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    write_json(out / "config.json", {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 420,
        "image_seq_length": positions, "pad_token_id": 421, "projector_hidden_act": "gelu", "tie_word_embeddings": False,
        "text_config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 1, "eos_token_id": 2,
                        "hidden_act": "silu", "hidden_size": hidden, "intermediate_size": ffn, "max_position_embeddings": 512,
                        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv, "rms_norm_eps": 1e-05,
                        "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": rows},
        "vision_config": {"hidden_size": width, "image_size": image, "intermediate_size": vffn, "model_type": "clip_vision_model",
                          "num_attention_heads": 2, "num_hidden_layers": vlayers, "patch_size": patch, "projection_dim": 20,
                          "hidden_act": "quick_gelu", "layer_norm_eps": 1e-05},
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default"})  # fmt: skip
    write_json(out / "preprocessor_config.json", {
        "crop_size": {"height": image, "width": image}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": mean, "image_processor_type": "CLIPImageProcessor", "image_std": std,
        "processor_class": "LlavaProcessor", "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": image}})  # fmt: skip
    write_json(out / "tokens.json", [{"text": t, "ids": [sp.bos_id(), *sp.encode(t)]} for t in TEXTS])
    llava_text(out, state, sp, extra, (hidden, ffn, heads, kv, layers))
    llava_tower(out, state, mean, std, (width, vffn, vlayers, patch, image))


def llava_text(out: Path, state: dict, sp: spm.SentencePieceProcessor, extra: list[str], sizes: tuple) -> None:
    hidden, ffn, heads, kv, layers = sizes
    w = gguf.GGUFWriter(out / "llava-mini-f16.gguf", "llama")
    w.add_block_count(layers)
    w.add_context_length(512)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(hidden // heads)
    add_sentencepiece(w, sp, extra, state["language_model.lm_head.weight"].shape[0])
    w.add_pad_token_id(421)
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}  # fmt: skip
    top = {"language_model.model.embed_tokens": "token_embd", "language_model.lm_head": "output", "language_model.model.norm": "output_norm"}
    for hf, gg in top.items():
        w.add_tensor(f"{gg}.weight", stored(state[f"{hf}.weight"]))
    for n in range(layers):
        for hf, gg in names.items():
            value = state[f"language_model.model.layers.{n}.{hf}.weight"]
            if gg in ("attn_q", "attn_k"):
                value = permute(value, heads if gg == "attn_q" else kv)
            w.add_tensor(f"blk.{n}.{gg}.weight", stored(value))
    finish(w)


def llava_tower(out: Path, state: dict, mean: list, std: list, sizes: tuple) -> None:
    """Writes the tower as the first converters did: the last block and the last norm dropped, ffn_up and ffn_down exchanged."""
    width, ffn, layers, patch, image = sizes
    w = gguf.GGUFWriter(out / "mmproj-llava-mini-f16.gguf", "clip")
    w.add_bool("clip.has_text_encoder", False)
    w.add_bool("clip.has_vision_encoder", True)
    w.add_bool("clip.has_llava_projector", True)
    w.add_string("clip.projector_type", "mlp")
    w.add_uint32("clip.vision.image_size", image)
    w.add_uint32("clip.vision.patch_size", patch)
    w.add_uint32("clip.vision.embedding_length", width)
    w.add_uint32("clip.vision.feed_forward_length", ffn)
    w.add_uint32("clip.vision.projection_dim", 20)
    w.add_uint32("clip.vision.attention.head_count", 2)
    w.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    w.add_uint32("clip.vision.block_count", layers - 1)
    w.add_array("clip.vision.image_mean", mean)
    w.add_array("clip.vision.image_std", std)
    w.add_bool("clip.use_gelu", False)
    t = "vision_tower.vision_model."
    w.add_tensor("v.class_embd", stored(state[f"{t}embeddings.class_embedding"]))
    w.add_tensor("v.patch_embd.weight", stored(state[f"{t}embeddings.patch_embedding.weight"]))
    w.add_tensor("v.position_embd.weight", stored(state[f"{t}embeddings.position_embedding.weight"]))
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_out",
             "layer_norm1": "ln1", "layer_norm2": "ln2", "mlp.fc1": "ffn_down", "mlp.fc2": "ffn_up"}  # fmt: skip
    for part in ("weight", "bias"):
        w.add_tensor(f"v.pre_ln.{part}", stored(state[f"{t}pre_layrnorm.{part}"]))
        for hf, gg in {"linear_1": "mm.0", "linear_2": "mm.2"}.items():
            w.add_tensor(f"{gg}.{part}", stored(state[f"multi_modal_projector.{hf}.{part}"]))
        for n in range(layers - 1):
            for hf, gg in names.items():
                w.add_tensor(f"v.blk.{n}.{gg}.{part}", stored(state[f"{t}encoder.layers.{n}.{hf}.{part}"]))
    finish(w)


def phi3() -> None:
    out = HERE / "phi3-mini"
    out.mkdir(exist_ok=True)
    hidden, ffn, heads, kv, layers, rows = 32, 48, 4, 2, 2, 264
    head = hidden // heads
    state = {"model.embed_tokens.weight": normal(rows, hidden), "lm_head.weight": normal(rows, hidden), "model.norm.weight": normal(hidden)}
    for n in range(layers):
        p = f"model.layers.{n}."
        state |= {
            f"{p}input_layernorm.weight": normal(hidden), f"{p}post_attention_layernorm.weight": normal(hidden),
            f"{p}self_attn.qkv_proj.weight": normal((heads + 2 * kv) * head, hidden), f"{p}self_attn.o_proj.weight": normal(hidden, hidden),
            f"{p}mlp.gate_up_proj.weight": normal(2 * ffn, hidden), f"{p}mlp.down_proj.weight": normal(hidden, ffn),
        }  # fmt: skip
    save_file(state, out / "model.safetensors", {"format": "pt"})
    long, short = [1.0, 1.5, 2.25, 4.0], [1.0, 1.02, 1.04, 1.1]
    write_json(out / "config.json", {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "bos_token_id": 1, "eos_token_id": 262, "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": ffn, "max_position_embeddings": 4096, "num_attention_heads": heads,
        "num_hidden_layers": layers, "num_key_value_heads": kv, "original_max_position_embeddings": 256, "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": long, "short_factor": short, "type": "longrope"}, "rope_theta": 10000.0, "sliding_window": 1024,
        "tie_word_embeddings": False, "vocab_size": rows})  # fmt: skip
    w = gguf.GGUFWriter(out / "phi3-mini-f16.gguf", "phi3")
    w.add_block_count(layers)
    w.add_context_length(4096)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(head)
    w.add_rope_scaling_orig_ctx_len(256)
    w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(16) / math.log(256)))
    w.add_sliding_window(1024)
    special = ["<unk>", "<s>", "</s>"]
    tokens = special + [f"<0x{i:02X}>" for i in range(256)] + ["▁", "a", "b", "<|end|>", "[PAD263]"]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    types += [TokenType.NORMAL] * 3 + [TokenType.CONTROL, TokenType.UNUSED]
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_scores([0.0] * len(tokens))
    w.add_token_types(types)
    w.add_bos_token_id(1)
    w.add_eos_token_id(262)
    for name, factors in (("long", long), ("short", short)):
        w.add_tensor(f"rope_factors_{name}.weight", np.array(factors, dtype=np.float32))
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.qkv_proj": "attn_qkv",
             "self_attn.o_proj": "attn_output", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
    for hf, gg in {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}.items():
        w.add_tensor(f"{gg}.weight", stored(state[f"{hf}.weight"]))
    for n in range(layers):
        for hf, gg in names.items():
            w.add_tensor(f"blk.{n}.{gg}.weight", stored(state[f"model.layers.{n}.{hf}.weight"]))
    finish(w)


PLAIN = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K,
         Type.IQ4_NL, Type.BF16, Type.F16, Type.F32, Type.Q4_K, Type.IQ4_NL, Type.Q6_K]  # fmt: skip
CODEBOOKS = [Type.IQ1_S, Type.IQ1_M, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ3_XXS, Type.IQ3_S, Type.IQ4_XS, Type.MXFP4,
             Type.NVFP4, Type.TQ1_0, Type.TQ2_0, Type.IQ1_S, Type.IQ1_M, Type.IQ2_S, Type.IQ3_S, Type.MXFP4]  # fmt: skip

if __name__ == "__main__":
    blocks("blocks.gguf", "expected.safetensors", 4, 6, PLAIN)
    llava()
    phi3()
    blocks("codebooks.gguf", "codebooks.safetensors", 2, 2, CODEBOOKS)
