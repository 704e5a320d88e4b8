"""`qwen2vl-odd` and `qwen25vl-odd`: Qwen2-VL and Qwen2.5-VL with sizes that divide by little.

Flat `config.json` as on the hub. Read `modeling_qwen2_vl.py` and `modeling_qwen2_5_vl.py` of transformers for the
model itself.
"""

import json
from pathlib import Path

import torch

import byte_level_bpe
import media
import weights
from goldens import Recorder, Run, Sample, greedy, last_position

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
FIRST = ["<|video_pad|>", "<|im_end|>", "<|vision_start|>"]
LAST = ["<|vision_pad|>", "<|image_pad|>", "<|im_start|>", "<|vision_end|>", "<|box_start|>", "<|box_end|>", "<|endoftext|>"]
VOCABULARY = 467  # rows of the embedding; the tokenizer has fewer
PIECES = VOCABULARY - len(FIRST) - len(LAST) - 21

# The dialect of the family with another default system turn: whoever ignores the checkpoint's template is found out.
TEMPLATE = (
    "{% set pictures = namespace(n=0) %}{% set videos = namespace(n=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou see, then answer.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part %}{% set pictures.n = pictures.n + 1 %}"
    "{% if add_vision_id %}Picture {{ pictures.n }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}{% set videos.n = videos.n + 1 %}"
    "{% if add_vision_id %}Video {{ videos.n }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Qwen2VL:
    name = "qwen2vl-odd"
    dtype = torch.float16
    seed = 20
    shards = 2
    tied = False
    rows = VOCABULARY
    text = dict(hidden_size=96, intermediate_size=104, num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=3,
                rms_norm_eps=1e-5, rope_theta=10000.0)  # fmt: skip
    sections = [2, 3, 3]
    pixels = (2 * 28 * 28, 6 * 28 * 28)

    def __init__(self, folder: Path):
        self.folder = folder

    def vision(self) -> dict:
        return dict(depth=3, embed_dim=60, mlp_ratio=3, num_heads=3, in_chans=3, hidden_size=96, patch_size=14,
                    spatial_merge_size=2, spatial_patch_size=14, temporal_patch_size=2)  # fmt: skip

    architecture, model_type, processor = "Qwen2VLForConditionalGeneration", "qwen2_vl", "Qwen2VLProcessor"

    def config(self, ids) -> dict:
        return {
            "architectures": [self.architecture], "model_type": self.model_type, "attention_dropout": 0.0,
            "bos_token_id": ids("<|endoftext|>"), "eos_token_id": ids("<|im_end|>"),
            "vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>"),
            "vision_token_id": ids("<|vision_pad|>"), "image_token_id": ids("<|image_pad|>"),
            "video_token_id": ids("<|video_pad|>"), "hidden_act": "silu", "initializer_range": 0.02,
            "max_position_embeddings": 2048, "max_window_layers": self.text["num_hidden_layers"], "sliding_window": 2048,
            "use_sliding_window": False, "tie_word_embeddings": self.tied, "vocab_size": self.rows, "use_cache": True,
            "rope_scaling": {"type": "mrope", "mrope_section": self.sections}, "vision_config": self.vision(),
            "torch_dtype": str(self.dtype).removeprefix("torch."), "transformers_version": "4.41.2",
        } | self.text  # fmt: skip

    def preprocessor(self) -> dict:
        return {
            "min_pixels": self.pixels[0], "max_pixels": self.pixels[1], "patch_size": 14, "temporal_patch_size": 2,
            "merge_size": 2, "image_mean": MEAN, "image_std": STD, "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": self.processor,
        }  # fmt: skip

    def write_files(self) -> None:
        tok = byte_level_bpe.qwen2(PIECES, FIRST, LAST, seed=3)
        byte_level_bpe.write(tok, self.folder, {
            "add_bos_token": False, "add_prefix_space": False, "additional_special_tokens": FIRST + LAST, "bos_token": None,
            "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 2048,
            "pad_token": "<|endoftext|>", "padding_side": "left", "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer", "unk_token": None, "chat_template": TEMPLATE,
        })  # fmt: skip
        ids = tok.token_to_id
        files = {
            "config.json": self.config(ids),
            "preprocessor_config.json": self.preprocessor(),
            "generation_config.json": {"bos_token_id": ids("<|endoftext|>"), "pad_token_id": ids("<|endoftext|>"), "do_sample": False,
                                       "eos_token_id": [ids("<|im_end|>"), ids("<|endoftext|>")]},
            "chat_template.json": {"chat_template": TEMPLATE},
        }  # fmt: skip
        for name, value in files.items():
            (self.folder / name).write_text(json.dumps(value, indent=1) + "\n")

    def write_weights(self) -> None:
        import transformers

        config = transformers.AutoConfig.from_pretrained(self.folder)
        model = getattr(transformers, self.architecture)(config).float()
        weights.fill(model, self.seed, self.dtype)
        if not self.tied:
            special = [*range(len(FIRST)), *range(len(FIRST) + PIECES, self.rows)]
            weights.hush_rows(model.lm_head.weight, special)
        weights.write_shards(hub_names(model), self.folder, self.dtype, self.shards)

    def load(self) -> None:
        import transformers

        cls = getattr(transformers, self.architecture)
        self.model = cls.from_pretrained(self.folder, torch_dtype=torch.float32, attn_implementation="eager").eval()
        self.processor_ = getattr(transformers, self.processor)(
            image_processor=transformers.AutoImageProcessor.from_pretrained(self.folder, use_fast=False),
            tokenizer=transformers.AutoTokenizer.from_pretrained(self.folder),
            video_processor=transformers.AutoVideoProcessor.from_pretrained(self.folder),
            chat_template=json.loads((self.folder / "chat_template.json").read_text())["chat_template"],
        )

    def samples(self) -> list[Sample]:
        return [
            Sample("image", "What does the picture show?", [media.picture(1, 97, 61)]),
            Sample("image", "How many circles are there? Größe: 12 cm", [media.picture(2, 310, 62)]),
            Sample("images", "What is the same in the first and the second picture?", [media.picture(3, 126, 30), media.picture(4, 24, 40)]),
            Sample("video", "What moves, and where does it end?", media.frames(5, 60, 34, 5)),
            Sample("text", "Hello! It's 3:45.\n\nWho are you?  Ça va?"),
        ]

    def prompt(self, sample: Sample) -> str:
        parts = {"video": [{"type": "video"}], "text": []}.get(sample.kind, [{"type": "image"}] * len(sample.media))
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": sample.question}]}]
        return self.processor_.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def inputs(self, sample: Sample) -> dict:
        what = {"video": {"videos": [sample.media]}, "text": {}}.get(sample.kind, {"images": sample.media})
        return dict(self.processor_(text=[self.prompt(sample)], return_tensors="pt", **what))

    def run(self, sample: Sample) -> Run:
        inputs, recorder = self.inputs(sample), Recorder()
        visual, tensors = self.model.visual, {"input_ids": inputs["input_ids"][0]}
        recorder.watch(visual.patch_embed, "patch_embed")
        recorder.watch(visual.merger, "vision_out", of_input=True)
        recorder.watch(visual, "projector_out")
        grids = {k: v for k, v in inputs.items() if k.endswith("grid_thw") or k == "second_per_grid_ts"}
        positions, delta = self.model.model.get_rope_index(inputs["input_ids"], attention_mask=inputs["attention_mask"], **grids)
        tensors |= {"position_ids": positions[:, 0], "rope_delta": delta.reshape(1, 1)}
        with torch.no_grad():
            out = self.model(**inputs, output_hidden_states=True)
        recorder.close()
        for key in ("pixel_values", "pixel_values_videos"):
            if key in inputs:
                tensors["pixel_values"] = inputs[key]
        for key, grid in grids.items():
            if key.endswith("grid_thw"):
                tensors["grid_thw"] = grid
                tensors |= self.tower_order(grid, recorder.kept)
        tensors |= recorder.kept
        tensors["logits_first"] = out.logits[0, -1]
        tensors["logits_argmax_all"] = out.logits[0].argmax(-1)
        tensors["lm_hidden_last"] = last_position(out.hidden_states)
        ids, leads = greedy(self.model, inputs, pad_token_id=self.end_tokens()[1])
        notes = {"prompt": self.prompt(sample)}
        if "second_per_grid_ts" in grids:
            notes["second_per_grid_ts"] = [float(s) for s in grids["second_per_grid_ts"]]
        return Run(tensors, ids, leads, notes)

    def tower_order(self, grid, kept: dict) -> dict:
        return {}

    def end_tokens(self) -> list[int]:
        return [self.processor_.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]

    def decode(self, ids: list[int]) -> str:
        return self.processor_.tokenizer.decode(ids, skip_special_tokens=True)


def hub_names(model) -> dict[str, torch.Tensor]:
    """Parameters under the names that published checkpoints use; transformers reverses its renaming when it saves."""
    import tempfile

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="1GB")
        return load_file(Path(folder) / "model.safetensors")
