"""`qwen2vl-odd` and `qwen25vl-odd`: Qwen2-VL and Qwen2.5-VL with sizes that divide by little.

Flat `config.json` as on the hub. Read `modeling_qwen2_vl.py` and `modeling_qwen2_5_vl.py` of transformers for the
model itself.
"""

import torch
import transformers

import byte_level_bpe
import media
import weights
from family import CLIP_MEAN, CLIP_STD, Family
from goldens import Sample

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


class Qwen2VL(Family):
    name = "qwen2vl-odd"
    architecture, model_type, processor_class = "Qwen2VLForConditionalGeneration", "qwen2_vl", "Qwen2VLProcessor"
    dtype = torch.float16
    seed = 20
    shards = 2
    tied = False
    token_seed = 3
    rows = VOCABULARY
    text = dict(hidden_size=96, intermediate_size=104, num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=3,
                rms_norm_eps=1e-5, rope_theta=10000.0)  # fmt: skip
    sections = [2, 3, 3]
    pixels = (2 * 28 * 28, 6 * 28 * 28)

    def vision(self) -> dict:
        return dict(depth=3, embed_dim=60, mlp_ratio=3, num_heads=3, in_chans=3, hidden_size=96, patch_size=14,
                    spatial_merge_size=2, spatial_patch_size=14, temporal_patch_size=2)  # fmt: skip

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
            "torch_dtype": self.stored_dtype(), "transformers_version": "4.41.2",
        } | self.text  # fmt: skip

    def preprocessor(self) -> dict:
        return {
            "min_pixels": self.pixels[0], "max_pixels": self.pixels[1], "patch_size": 14, "temporal_patch_size": 2,
            "merge_size": 2, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": self.processor_class,
        }  # fmt: skip

    def write_files(self) -> None:
        tok = byte_level_bpe.qwen2(PIECES, FIRST, LAST, self.token_seed)
        byte_level_bpe.write(tok, self.folder, {
            "add_bos_token": False, "add_prefix_space": False, "additional_special_tokens": FIRST + LAST, "bos_token": None,
            "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 2048,
            "pad_token": "<|endoftext|>", "padding_side": "left", "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer", "unk_token": None, "chat_template": TEMPLATE,
        })  # fmt: skip
        ids = tok.token_to_id
        end, rest = ids("<|im_end|>"), ids("<|endoftext|>")
        self.write_json(
            config=self.config(ids), preprocessor_config=self.preprocessor(), chat_template={"chat_template": TEMPLATE},
            generation_config={"bos_token_id": rest, "pad_token_id": rest, "do_sample": False, "eos_token_id": [end, rest]},
        )  # fmt: skip

    def adjust(self, model) -> None:
        if self.tied:
            weights.flip_signs(model.model.language_model.norm.weight, self.seed)
        else:
            weights.hush_rows(model.lm_head.weight, [*range(len(FIRST)), *range(len(FIRST) + PIECES, self.rows)])

    def load_processor(self) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.processor = getattr(transformers, self.processor_class)(
            image_processor=transformers.AutoImageProcessor.from_pretrained(self.folder, use_fast=False),
            tokenizer=self.tokenizer,
            video_processor=transformers.AutoVideoProcessor.from_pretrained(self.folder),
            chat_template=self.read_json("chat_template")["chat_template"],
        )

    def samples(self) -> list[Sample]:
        return [
            Sample("image", "What does the picture show?", [media.image(1, 97, 61)]),
            Sample("image", "How many circles are there? Größe: 12 cm", [media.image(2, 310, 62)]),
            Sample(
                "images", "What is the same in the first and the second picture?", [media.image(3, 126, 30), media.image(4, 24, 40)]
            ),
            Sample("video", "What moves, and where does it end?", media.frames(5, 60, 34, 5)),
            Sample("text", "Hello! It's 3:45.\n\nWho are you?  Ça va?"),
        ]

    def prompt(self, sample: Sample) -> str:
        parts = {"video": [{"type": "video"}], "text": []}.get(sample.kind, [{"type": "image"}] * len(sample.media))
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": sample.question}]}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def inputs(self, sample: Sample) -> dict:
        what = {"video": {"videos": [sample.media]}, "text": {}}.get(sample.kind, {"images": sample.media})
        return dict(self.processor(text=[self.prompt(sample)], return_tensors="pt", **what))

    def before(self, inputs: dict) -> dict:
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        grids = {k: inputs[k] for k in names if k in inputs}
        mask = inputs["attention_mask"]
        positions, delta = self.model.model.get_rope_index(inputs["input_ids"], attention_mask=mask, **grids)
        out = {"position_ids": positions[:, 0], "rope_delta": delta.reshape(1, 1)}
        for grid, pixels in (("image_grid_thw", "pixel_values"), ("video_grid_thw", "pixel_values_videos")):
            if grid in inputs:
                out |= {"grid_thw": inputs[grid], "pixel_values": inputs[pixels]}
        return out

    def watch(self, recorder) -> None:
        visual = self.model.visual
        recorder.watch(visual.patch_embed, "patch_embed")
        recorder.watch(visual.merger, "vision_out", of_input=True)
        recorder.watch(visual, "projector_out")

    def end_tokens(self) -> list[int]:
        return [self.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]


class Qwen25VL(Qwen2VL):
    """Windows of 3x3 merged tokens, cut off at the edges; one key-value head; tied embeddings; three positions a second."""

    name = "qwen25vl-odd"
    architecture, model_type = "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"
    processor_class = "Qwen2_5_VLProcessor"
    dtype = torch.bfloat16
    seed = 1
    shards = 1
    tied = True
    token_seed = 4
    text = dict(hidden_size=80, intermediate_size=100, num_hidden_layers=4, num_attention_heads=5, num_key_value_heads=1,
                rms_norm_eps=1e-6, rope_theta=200000.0)  # fmt: skip
    sections = [3, 3, 2]
    pixels = (2 * 28 * 28, 12 * 28 * 28)

    def vision(self) -> dict:
        return dict(depth=4, hidden_act="silu", hidden_size=48, intermediate_size=60, num_heads=3, in_chans=3, out_hidden_size=80,
                    patch_size=14, spatial_merge_size=2, spatial_patch_size=14, window_size=84, fullatt_block_indexes=[2],
                    tokens_per_second=3, temporal_patch_size=2)  # fmt: skip

    def samples(self) -> list[Sample]:
        return [
            Sample("image", "What does the picture show?", [media.image(21, 109, 90)]),
            Sample("image", "How many circles are there? Größe: 12 cm", [media.image(22, 204, 41)]),
            Sample("video", "What moves, and where does it end?", media.frames(23, 117, 33, 5)),
        ]

    def after(self, inputs: dict, kept: dict) -> dict:
        """The tower works window by window; what enters the merger is put back into the order of the placeholders."""
        grid = inputs.get("image_grid_thw", inputs.get("video_grid_thw"))
        order = torch.as_tensor(self.model.visual.get_window_index(grid)[0])
        rows = kept["vision_out"].reshape(len(order), self.model.visual.spatial_merge_unit, -1)
        kept["vision_out"] = rows[torch.argsort(order)].flatten(0, 1)
        return kept | {"window_index": order}

    def notes(self, inputs: dict) -> dict:
        seconds = inputs.get("second_per_grid_ts")
        return {} if seconds is None else {"second_per_grid_ts": [float(s) for s in seconds]}
