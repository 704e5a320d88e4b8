"""`qwen2audio-odd`: Qwen2-Audio with 80 mel bins and windows of two seconds instead of 128 and thirty.

`max_source_positions` and `chunk_length` say so in the configuration. Read `modeling_qwen2_audio.py` of transformers for
the model itself.
"""

import numpy as np
import torch
import transformers

import byte_level_bpe
import media
import weights
from family import Family
from goldens import Sample

ROWS = 451
FIRST = ["<|audio_eos|>", "<|im_end|>"]
LAST = ["<|im_start|>", "<|AUDIO|>", "<|audio_bos|>", "<|endoftext|>"]
PIECES = ROWS - len(FIRST) - len(LAST) - 13
RATE, SECONDS = 16000, 2

TEMPLATE = (
    "{% set sounds = namespace(n=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou hear, then answer.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' or 'audio_url' in part %}{% set sounds.n = sounds.n + 1 %}"
    "Audio {{ sounds.n }}: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Qwen2Audio(Family):
    name = "qwen2audio-odd"
    architecture = "Qwen2AudioForConditionalGeneration"
    dtype = torch.bfloat16
    seed = 1

    def config(self, ids) -> dict:
        stored = self.stored_dtype()
        return {
            "architectures": [self.architecture], "model_type": "qwen2_audio", "ignore_index": -100, "vocab_size": ROWS,
            "audio_token_index": ids("<|AUDIO|>"), "torch_dtype": stored, "transformers_version": "4.38.1",
            "audio_config": {
                "model_type": "qwen2_audio_encoder", "num_mel_bins": 80, "encoder_layers": 3, "encoder_attention_heads": 3,
                "encoder_ffn_dim": 100, "encoder_layerdrop": 0.0, "d_model": 48, "dropout": 0.0, "attention_dropout": 0.0,
                "activation_function": "gelu", "activation_dropout": 0.0, "scale_embedding": False, "init_std": 0.02,
                "max_source_positions": 50 * SECONDS,
            },
            "text_config": {
                "model_type": "qwen2", "vocab_size": ROWS, "hidden_size": 72, "intermediate_size": 132, "num_hidden_layers": 4,
                "num_attention_heads": 6, "num_key_value_heads": 3, "rms_norm_eps": 1e-6, "rope_theta": 30000.0,
                "max_position_embeddings": 1024, "hidden_act": "silu", "tie_word_embeddings": False, "use_mrope": False,
                "bos_token_id": ids("<|endoftext|>"), "eos_token_id": ids("<|im_end|>"), "torch_dtype": stored,
            },
        }  # fmt: skip

    def write_files(self) -> None:
        tok = byte_level_bpe.qwen2(PIECES, FIRST, LAST, seed=8)
        byte_level_bpe.write(tok, self.folder, {
            "add_bos_token": False, "add_prefix_space": False, "additional_special_tokens": FIRST + LAST, "bos_token": None,
            "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 1024,
            "pad_token": "<|endoftext|>", "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
            "chat_template": TEMPLATE,
        })  # fmt: skip
        ids = tok.token_to_id
        end, rest = ids("<|im_end|>"), ids("<|endoftext|>")
        self.write_json(
            config=self.config(ids), chat_template={"chat_template": TEMPLATE},
            preprocessor_config={
                "chunk_length": SECONDS, "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "hop_length": 160,
                "n_fft": 400, "n_samples": RATE * SECONDS, "nb_max_frames": 100 * SECONDS, "padding_side": "right", "padding_value": 0.0,
                "processor_class": "Qwen2AudioProcessor", "return_attention_mask": True, "sampling_rate": RATE,
            },
            generation_config={"do_sample": False, "bos_token_id": rest, "eos_token_id": [end, rest], "pad_token_id": rest},
        )  # fmt: skip

    def adjust(self, model) -> None:
        head = model.language_model.lm_head.weight
        weights.hush_rows(head, [*range(len(FIRST)), *range(len(FIRST) + PIECES, ROWS)])

    def load_processor(self) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        sounds = transformers.WhisperFeatureExtractor.from_pretrained(self.folder)
        self.processor = transformers.Qwen2AudioProcessor(sounds, self.tokenizer, chat_template=TEMPLATE)

    def samples(self) -> list[Sample]:
        return [
            Sample("audio", "What do you hear?", [media.sound(41, 19801)]),
            Sample("audio", "Is it high? Größe: 12 cm", [media.sound(42, 1777)]),
            Sample("audios", "Which sound is longer?", [media.sound(43, 38000), media.sound(44, 9600)]),
        ]

    def prompt(self, sample: Sample) -> str:
        content = [{"type": "audio"}] * len(sample.media) + [{"type": "text", "text": sample.question}]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def inputs(self, sample: Sample) -> dict:
        waves = [s.astype(np.float32) / 32768.0 for s in sample.media]
        return dict(self.processor(text=self.prompt(sample), audio=waves, sampling_rate=RATE, return_tensors="pt"))

    def before(self, inputs: dict) -> dict:
        return {"input_features": inputs["input_features"]}

    def watch(self, recorder) -> None:
        recorder.watch(self.model.audio_tower, "vision_out")
        recorder.watch(self.model.multi_modal_projector, "projector_out")

    def token_counts(self, inputs: dict) -> list[int]:
        frames = inputs["feature_attention_mask"].sum(-1).tolist()
        return [(((n - 1) // 2 + 1) - 2) // 2 + 1 for n in frames]

    def after(self, inputs: dict, kept: dict) -> dict:
        """Both stages without the tokens that stand for padding, one sound after the other."""
        counts = self.token_counts(inputs)
        return {k: torch.cat([rows[:n] for rows, n in zip(v, counts)]) for k, v in kept.items()}

    def notes(self, inputs: dict) -> dict:
        frames = inputs["feature_attention_mask"].sum(-1).tolist()
        return {"mel_valid_frames": frames, "audio_tokens": self.token_counts(inputs)}

    def end_tokens(self) -> list[int]:
        return [self.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
