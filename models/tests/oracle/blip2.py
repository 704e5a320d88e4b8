"""`blip2-odd` and `blip2-t5-odd`: BLIP-2 over OPT and over Flan-T5.

Seven queries; a Q-Former of three layers whose first and third look at the image. Read `modeling_blip_2.py`,
`modeling_opt.py` and `modeling_t5.py` of transformers for the models themselves.
"""

import math
from collections import Counter

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import byte_level_bpe
import media
import weights
from family import CLIP_MEAN, CLIP_STD, Family
from goldens import Sample

QUERIES = 7


class Blip2(Family):
    name = "blip2-odd"
    architecture = "Blip2ForConditionalGeneration"
    dtype = torch.float16
    seed = 1
    rows = 499
    start, pad, end = 2, 1, 2  # OPT starts with its end token

    def text_config(self) -> dict:
        return {
            "model_type": "opt", "architectures": ["OPTForCausalLM"], "activation_function": "relu", "do_layer_norm_before": True,
            "enable_bias": True, "ffn_dim": 132, "hidden_size": 72, "word_embed_proj_dim": 72, "num_hidden_layers": 4,
            "num_attention_heads": 6, "max_position_embeddings": 160, "vocab_size": self.rows, "bos_token_id": self.start,
            "eos_token_id": self.end, "pad_token_id": self.pad, "dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0,
            "layer_norm_elementwise_affine": True, "tie_word_embeddings": True, "_remove_final_layer_norm": False, "prefix": "</s>",
        }  # fmt: skip

    decoder_only = True

    def config(self, image_token: int) -> dict:
        return {
            "architectures": [self.architecture], "model_type": "blip-2", "num_query_tokens": QUERIES, "image_token_index": image_token,
            "image_text_hidden_size": 256, "initializer_factor": 1.0, "initializer_range": 0.02, "torch_dtype": self.stored_dtype(),
            "tie_word_embeddings": False, "use_decoder_only_language_model": self.decoder_only, "transformers_version": "4.46.0",
            "qformer_config": {
                "model_type": "blip_2_qformer", "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3,
                "intermediate_size": 76, "cross_attention_frequency": 2, "encoder_hidden_size": 48, "hidden_act": "gelu",
                "layer_norm_eps": 1e-12, "vocab_size": 64, "max_position_embeddings": 64, "attention_probs_dropout_prob": 0.0,
                "hidden_dropout_prob": 0.0, "position_embedding_type": "absolute", "use_qformer_text_input": False,
            },
            "vision_config": {
                "model_type": "blip_2_vision_model", "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3,
                "num_attention_heads": 3, "image_size": 70, "patch_size": 10, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
                "qkv_bias": True, "attention_dropout": 0.0, "initializer_range": 0.02,
            },
            "text_config": self.text_config(),
        }  # fmt: skip

    def make_tokenizer(self) -> Tokenizer:
        tok = byte_level_bpe.gpt2(self.rows - 20, ["<s>", "<pad>", "</s>", "<unk>"], ["<image>"], seed=6, bos="</s>")
        byte_level_bpe.write(tok, self.folder, {
            "add_bos_token": True, "add_prefix_space": False, "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>",
            "unk_token": "</s>", "errors": "replace", "model_max_length": 160, "clean_up_tokenization_spaces": False,
            "tokenizer_class": "GPT2Tokenizer",
        })  # fmt: skip
        return tok

    def write_files(self) -> None:
        tok = self.make_tokenizer()
        assert tok.get_vocab_size() < self.rows, tok.get_vocab_size()
        self.write_json(
            config=self.config(tok.token_to_id("<image>")),
            preprocessor_config={
                "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": CLIP_MEAN,
                "image_std": CLIP_STD, "resample": 3, "rescale_factor": 1 / 255, "size": {"height": 70, "width": 70},
                "image_processor_type": "BlipImageProcessor", "processor_class": "Blip2Processor",
            },
            processor_config={"num_query_tokens": QUERIES, "processor_class": "Blip2Processor"},
            generation_config={"bos_token_id": self.start, "eos_token_id": self.end, "pad_token_id": self.pad},
        )  # fmt: skip

    def adjust(self, model) -> None:
        for layer in model.vision_model.encoder.layers:  # published towers have no bias on the keys
            layer.self_attn.qkv.bias.data.unflatten(0, (3, -1))[1].zero_()
        self.adjust_text(model.language_model)

    def adjust_text(self, text) -> None:
        weights.flip_signs(text.model.decoder.final_layer_norm.weight, self.seed)

    def load_processor(self) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        image_processor = transformers.BlipImageProcessor.from_pretrained(self.folder)
        self.processor = transformers.Blip2Processor(image_processor, self.tokenizer, num_query_tokens=QUERIES)

    def samples(self) -> list[Sample]:
        return [
            Sample("image", "What does the picture show?", [media.image(31, 97, 61)]),
            Sample("image", "How many circles? It's 12 cm; naïve", [media.image(32, 50, 123)]),
            Sample("image", "which colour is there?", [media.image(33, 200, 90).convert("L")]),
        ]

    def prompt(self, sample: Sample) -> str:
        return f"Question: {sample.question} Answer:"

    def inputs(self, sample: Sample) -> dict:
        return dict(self.processor(images=sample.media, text=self.prompt(sample), return_tensors="pt"))

    def before(self, inputs: dict) -> dict:
        return {"pixel_values": inputs["pixel_values"]}

    def watch(self, recorder) -> None:
        recorder.watch(self.model.vision_model.embeddings, "patch_embed")
        recorder.watch(self.model.vision_model, "vision_out")
        recorder.watch(self.model.qformer, "qformer_out")
        recorder.watch(self.model.language_projection, "projector_out")

    def text_output(self, out):
        return out.logits, out.language_model_outputs.hidden_states

    def end_tokens(self) -> list[int]:
        return [self.end]

    def pad_token(self) -> int:
        return self.pad


class Blip2T5(Blip2):
    """Flan-T5 behind the Q-Former: an encoder over image and question, a decoder that starts from the padding token.

    The head width is not hidden / heads, attention is not scaled, and distances beyond 20 share the last bias bucket.
    """

    name = "blip2-t5-odd"
    dtype = torch.bfloat16
    seed = 7
    rows = 311
    start, pad, end = 0, 0, 1
    decoder_only = False

    def text_config(self) -> dict:
        return {
            "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 60, "d_kv": 16, "d_ff": 92,
            "num_layers": 4, "num_decoder_layers": 3, "num_heads": 5, "relative_attention_num_buckets": 12,
            "relative_attention_max_distance": 20, "dropout_rate": 0.0, "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu",
            "dense_act_fn": "gelu_new", "is_gated_act": True, "is_encoder_decoder": True, "tie_word_embeddings": False,
            "vocab_size": self.rows, "decoder_start_token_id": self.start, "pad_token_id": self.pad, "eos_token_id": self.end,
            "use_cache": True,
        }  # fmt: skip

    def make_tokenizer(self) -> Tokenizer:
        tok = unigram(self.rows - 24)
        byte_level_bpe.write(tok, self.folder, {
            "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 0, "model_max_length": 160,
            "clean_up_tokenization_spaces": False, "tokenizer_class": "T5Tokenizer",
        })  # fmt: skip
        return tok

    def adjust_text(self, text) -> None:
        for name, p in text.named_parameters():
            if name.endswith(("Attention.q.weight", "EncDecAttention.q.weight")):
                p.data *= 1.6 / self.text_config()["d_kv"] ** 0.5  # T5 does not divide by the root of the head width
        weights.hush_rows(text.lm_head.weight, [*range(3), *range(self.tokens_in_use(), self.rows)])

    def tokens_in_use(self) -> int:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json")).get_vocab_size() - 1

    def inputs(self, sample: Sample) -> dict:
        return super().inputs(sample) | {"decoder_input_ids": torch.tensor([[self.start]])}

    def watch(self, recorder) -> None:
        super().watch(recorder)
        recorder.watch(self.model.language_model.encoder, "encoder_out")

    def generation_inputs(self, inputs: dict) -> dict:
        return {k: v for k, v in inputs.items() if k != "decoder_input_ids"}

    def text_output(self, out):
        return out.logits, out.language_model_outputs.decoder_hidden_states


def unigram_pieces(count: int) -> list[tuple[str, float]]:
    """Pieces with their log probabilities: printable characters, then what is frequent in the corpus times its length.

    Counted rather than trained: the training in `tokenizers` comes out differently every time.
    """
    words = Counter(w for line in byte_level_bpe.corpus() if line.isascii() for w in ("▁" + line.replace(" ", " ▁")).split())
    parts = Counter()
    for word, n in words.items():
        for i in range(len(word)):
            for j in range(i + 1, min(len(word), i + 8) + 1):
                parts[word[i:j]] += n
    letters = ["▁", *(chr(c) for c in range(33, 127))]
    longer = sorted((p for p in parts if len(p) > 1), key=lambda p: (-parts[p] * len(p), p))
    total = sum(parts.values())
    return [(p, math.log((parts[p] + 0.5) / total)) for p in letters + longer[: count - len(letters)]]


def unigram(count: int) -> Tokenizer:
    """A T5-style tokenizer: unigram pieces, `</s>` behind the text, `<pad>`, `</s>`, `<unk>` as 0, 1, 2."""
    fixed = ["<pad>", "</s>", "<unk>"]
    tok = Tokenizer(models.Unigram([(t, 0.0) for t in fixed] + unigram_pieces(count), unk_id=2, byte_fallback=False))
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in [*fixed, "<image>"]])
    return tok
