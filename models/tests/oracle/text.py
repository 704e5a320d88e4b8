"""Language models alone: Llama with a SentencePiece and with a byte-level tokenizer, Qwen2, Phi-3, Gemma 3.

Between them they have every way of scaling rotary frequencies: `llama-odd` linear, `llama3-odd` that of Llama 3.1,
`phi3-odd` LongRoPE on a part of each head, `gemma3text-odd` linear in some layers. Read `modeling_llama.py`,
`modeling_qwen2.py`, `modeling_phi3.py`, `modeling_gemma3.py` and `modeling_rope_utils.py` of transformers for the models
themselves.
"""

import torch
import transformers
from tokenizers import AddedToken

import byte_level_bpe
import sentencepiece_bpe
import weights
from family import Family
from goldens import Sample

QUESTIONS = ["What does the picture show?", "How many circles are there?  Größe: 12 cm ☃", "Hello! It's 3:45.\n\nWho are you?"]
SENTENCEPIECE = {
    "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "unk_token": "<unk>", "padding_side": "left",
    "clean_up_tokenization_spaces": False, "tokenizer_class": "LlamaTokenizer", "sp_model_kwargs": {}, "use_default_system_prompt": False,
}  # fmt: skip


class Text(Family):
    """A language model that is asked questions without media, in the form of its template if it has one."""

    model_type: str
    sizes: dict
    template: str | None = None
    dtype = torch.bfloat16
    rows = 467  # of the embedding; the tokenizer has fewer

    def tokens(self) -> list[str]:
        """Begin, end and padding."""
        raise NotImplementedError

    def tokenizer_file(self):
        """Writes the tokenizer and returns it."""
        raise NotImplementedError

    def write_files(self) -> None:
        tok = self.tokenizer_file()
        self.used = tok.get_vocab_size()
        assert self.used < self.rows, self.used
        begin, end, pad = [tok.token_to_id(t) for t in self.tokens()]
        edges = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": pad}
        config = {"architectures": [self.architecture], "model_type": self.model_type, "hidden_act": "silu", "attention_dropout": 0.0,
                  "vocab_size": self.rows, "torch_dtype": self.stored_dtype(), "transformers_version": "4.46.0"}  # fmt: skip
        self.write_json(config=config | self.sizes | edges, generation_config=edges)

    def adjust(self, model) -> None:
        special = [i for i, t in self.load_tokenizer().added_tokens_decoder.items() if t.special]
        if self.sizes["tie_word_embeddings"]:
            weights.flip_signs(model.model.norm.weight, self.seed)
        else:
            weights.hush_rows(model.lm_head.weight, [*special, *range(self.used, self.rows)])

    def load_tokenizer(self):
        return transformers.AutoTokenizer.from_pretrained(self.folder)

    def load_processor(self) -> None:
        self.tokenizer = self.load_tokenizer()

    def samples(self) -> list[Sample]:
        return [Sample("text", question) for question in QUESTIONS]

    def prompt(self, sample: Sample) -> str:
        if self.template is None:
            return sample.question
        messages = [{"role": "user", "content": sample.question}]
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def inputs(self, sample: Sample) -> dict:
        # What a template writes is complete; only a text without one gets the token that begins it.
        encoded = self.tokenizer(self.prompt(sample), add_special_tokens=self.template is None, return_tensors="pt")
        return {k: encoded[k] for k in ("input_ids", "attention_mask")}

    def watch(self, recorder) -> None:
        pass

    def end_tokens(self) -> list[int]:
        return [self.read_json("config")["eos_token_id"]]

    def pad_token(self) -> int:
        return self.read_json("config")["pad_token_id"]


class Llama(Text):
    """Base model: no template, linear scaling, heads of another size than the width says."""

    name = "llama-odd"
    architecture, model_type = "LlamaForCausalLM", "llama"
    seed = 8
    rows = 499
    sizes = dict(hidden_size=72, intermediate_size=132, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=14,
                 max_position_embeddings=512, rms_norm_eps=1e-6, rope_theta=30000.0, rope_scaling={"type": "linear", "factor": 2.5},
                 attention_bias=False, mlp_bias=False, tie_word_embeddings=False)  # fmt: skip

    def tokens(self) -> list[str]:
        return ["<s>", "</s>", "<unk>"]

    def tokenizer_file(self):
        tok = sentencepiece_bpe.llama(210, [], seed=12, legacy=True)
        byte_level_bpe.write(tok, self.folder, SENTENCEPIECE | {"eos_token": "</s>", "legacy": True, "model_max_length": 512})
        return tok


class Llama3(Text):
    """Byte-level tokenizer, a template that writes the first token itself, waves on both sides of both borders, tied head."""

    name = "llama3-odd"
    architecture, model_type = "LlamaForCausalLM", "llama"
    seed = 9
    sizes = dict(hidden_size=96, intermediate_size=100, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1,
                 max_position_embeddings=1024, rms_norm_eps=1e-5, rope_theta=5000.0,
                 rope_scaling={"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
                               "original_max_position_embeddings": 96},
                 attention_bias=False, mlp_bias=False, tie_word_embeddings=True)  # fmt: skip
    template = (
        "{{ bos_token }}{% for message in messages %}"
        "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )

    def tokens(self) -> list[str]:
        return ["<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"]

    def tokenizer_file(self):
        last = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tok = byte_level_bpe.llama3(self.rows - len(last) - 15, last, seed=5)
        byte_level_bpe.write(tok, self.folder, {
            "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "clean_up_tokenization_spaces": False,
            "model_max_length": 1024, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": self.template,
        })  # fmt: skip
        return tok


class Qwen2(Text):
    """Biases on queries, keys and values; one query head for each key head but one; tied head."""

    name = "qwen2-odd"
    architecture, model_type = "Qwen2ForCausalLM", "qwen2"
    seed = 3
    sizes = dict(hidden_size=80, intermediate_size=100, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=1,
                 max_position_embeddings=512, rms_norm_eps=1e-6, rope_theta=100000.0, use_sliding_window=False, sliding_window=64,
                 max_window_layers=3, tie_word_embeddings=True)  # fmt: skip
    template = (
        "{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou read, then answer.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )

    def tokens(self) -> list[str]:
        return ["<|endoftext|>", "<|im_end|>", "<|endoftext|>"]

    def tokenizer_file(self):
        first, last = ["<|im_end|>"], ["<|im_start|>", "<|endoftext|>"]
        tok = byte_level_bpe.qwen2(self.rows - len(first + last) - 11, first, last, seed=6)
        byte_level_bpe.write(tok, self.folder, {
            "add_prefix_space": False, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False, "model_max_length": 512, "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer", "chat_template": self.template,
        })  # fmt: skip
        return tok


class Phi3(Text):
    """LongRoPE on three quarters of each head; prompts below its border, just below it, and beyond it.

    The second prompt becomes long while it is continued. The reference then drops its cache; here it has none at all,
    which gives the same and does not depend on how it drops it.
    """

    name = "phi3-odd"
    architecture, model_type = "Phi3ForCausalLM", "phi3"
    seed = 5
    rows = 499
    sizes = dict(hidden_size=96, intermediate_size=132, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
                 max_position_embeddings=1024, original_max_position_embeddings=42, rms_norm_eps=1e-5, rope_theta=10000.0,
                 partial_rotary_factor=0.75, sliding_window=1024, tie_word_embeddings=False,
                 rope_scaling={"type": "longrope", "short_factor": [1.0, 1.02, 1.07, 1.11, 1.3, 1.4],
                               "long_factor": [1.1, 1.6, 2.9, 5.2, 7.7, 12.5]})  # fmt: skip
    template = (
        "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
    )
    generation = {"use_cache": False}

    def tokens(self) -> list[str]:
        return ["<s>", "<|endoftext|>", "<|endoftext|>"]

    def tokenizer_file(self):
        names = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
        extra = [AddedToken(t, special=True, normalized=False, rstrip=t != "<|endoftext|>") for t in names]
        tok = sentencepiece_bpe.llama(210, extra, seed=13, legacy=True)
        about = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "legacy": False, "model_max_length": 1024}
        byte_level_bpe.write(tok, self.folder, SENTENCEPIECE | about | {"chat_template": self.template})
        return tok

    def samples(self) -> list[Sample]:
        crossing = "Then the first circle follows the other one, and so on. What is next?"
        return [Sample("text", q) for q in (QUESTIONS[0], crossing, QUESTIONS[1] + " " + 2 * crossing)]

    def end_tokens(self) -> list[int]:
        return [self.tokenizer.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|assistant|>", "<|end|>")]


class Gemma3Text(Text):
    """Full attention in the third of four layers, with scaled frequencies; the others see 9 tokens. Tied head."""

    name = "gemma3text-odd"
    architecture, model_type = "Gemma3ForCausalLM", "gemma3_text"
    seed = 23
    sizes = dict(hidden_size=56, intermediate_size=68, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1, head_dim=18,
                 max_position_embeddings=512, rms_norm_eps=1e-6, rope_theta=50000.0, rope_local_base_freq=900.0,
                 rope_scaling={"rope_type": "linear", "factor": 4.0}, query_pre_attn_scalar=28, sliding_window=9,
                 sliding_window_pattern=3, hidden_activation="gelu_pytorch_tanh", attention_bias=False, tie_word_embeddings=True)  # fmt: skip
    template = (
        "{{ bos_token }}{% for message in messages %}"
        "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    generation = {"use_cache": False}

    def tokens(self) -> list[str]:
        return ["<bos>", "<eos>", "<pad>"]

    def tokenizer_file(self):
        tok = sentencepiece_bpe.gemma(150, seed=14)
        byte_level_bpe.write(tok, self.folder, {
            "add_bos_token": True, "add_eos_token": False, "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
            "unk_token": "<unk>", "clean_up_tokenization_spaces": False, "model_max_length": 512, "tokenizer_class": "GemmaTokenizer",
            "chat_template": self.template,
        })  # fmt: skip
        return tok

    @torch.no_grad()
    def adjust(self, model) -> None:
        super().adjust(model)
        for name, p in model.named_parameters():
            # Scales are stored less 1. Sharper attention shows errors of positions; the layers must outweigh the scaled embeddings.
            if "norm" in name:
                p *= 2.0 if "q_norm" in name or "post_" in name else 4.0 if name == "model.norm.weight" else 1.0
                p -= 1.0
        model.model.embed_tokens.weight *= 0.2

    def load_tokenizer(self):
        return transformers.PreTrainedTokenizerFast.from_pretrained(self.folder)

    def end_tokens(self) -> list[int]:
        return [self.tokenizer.convert_tokens_to_ids(t) for t in ("<eos>", "<end_of_turn>")]
