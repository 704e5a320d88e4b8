"""`phi35v-odd`: Phi-3.5-Vision with grouped key-value heads, six frequencies and crops of 42 pixels.

The language model is transformers' Phi-3. The image part (high-definition crops, separators, projector) exists only as
code published beside the weights, which does not run under this version of transformers, so it is written here from its
description: an image is fitted into at most `num_crops` square crops, seen once more as a whole, every row of the grid is
closed with `sub_GN`, and `glb_GN` stands between crops and whole. It gives the values that the trained `phi35v-tiny` came
with, but has not been compared with the published code.

`tiny_clip_config`, `tiny_crop_size` and `num_img_tokens` replace what the published code fixes to CLIP-L/14-336.
"""

import math
import re

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from torch import nn

import byte_level_bpe
import media
import sentencepiece_bpe
import weights
from family import CLIP_MEAN, CLIP_STD, Family
from goldens import Recorder, Run, Sample, greedy, last_position

ROWS = 499
IMAGE = -1  # stands for every visual token; published prompts number images downwards from -1
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}<|assistant|>\n{% endif %}"
)


def fit_crops(image: Image.Image, crop: int, most: int) -> Image.Image:
    """Resizes to the widest whole number of crops that `most` allows and pads with white above and below.

    A portrait is laid on its side meanwhile. Bilinear with antialiasing, as PIL does it.
    """
    image = image.convert("RGB")
    portrait = image.width < image.height
    if portrait:
        image = image.transpose(Image.TRANSPOSE)
    ratio = image.width / image.height
    across = max(n for n in range(1, most + 1) if n * math.ceil(n / ratio) <= most)
    width = across * crop
    height = int(width / ratio)
    canvas = Image.new("RGB", (width, math.ceil(height / crop) * crop), (255, 255, 255))
    canvas.paste(image.resize((width, height), Image.BILINEAR), (0, int((canvas.height - height) / 2)))
    return canvas.transpose(Image.TRANSPOSE) if portrait else canvas


def to_crops(canvas: Image.Image, crop: int, most: int) -> torch.Tensor:
    """Normalised crops, 1 x (most + 1) x 3 x crop x crop: the whole, then row by row, then zeros."""
    x = torch.from_numpy(np.asarray(canvas)).float() / 255
    x = ((x - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(2, 0, 1)[None]
    whole = F.interpolate(x, size=(crop, crop), mode="bicubic")
    parts = x.unfold(2, crop, crop).unfold(3, crop, crop).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    rest = torch.zeros(most - len(parts), 3, crop, crop)
    return torch.cat([whole, parts, rest])[None]


class ImagePart(nn.Module):
    """CLIP, the 2x2 merge, the separators and the projector, under the names of the published checkpoint."""

    def __init__(self, clip: dict, hidden: int):
        super().__init__()
        config = transformers.CLIPVisionConfig(**clip, attn_implementation="eager")
        self.img_processor = transformers.CLIPVisionModel(config)
        width = 4 * config.hidden_size
        self.glb_GN, self.sub_GN = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 1, 1, width))
        self.img_projection = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def features(self, crops: torch.Tensor) -> torch.Tensor:
        """Hidden states before the last layer without the class token: crops x patches x width."""
        return self.img_processor(crops, output_hidden_states=True).hidden_states[-2][:, 1:]

    def grid(self, features: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """The crops' features as one grid, 2x2 neighbors side by side, each row closed with `sub_GN`."""
        side = math.isqrt(features.shape[1])
        x = features.unflatten(1, (side // 2, 2, side // 2, 2)).unflatten(0, (rows, columns))
        # crop row, row inside, crop column, column inside, then the four neighbors and their width
        x = x.permute(0, 2, 1, 4, 3, 5, 6).flatten(4).flatten(2, 3).flatten(0, 1)
        return torch.cat([x, self.sub_GN[0].expand(x.shape[0], 1, -1)], 1).flatten(0, 1)

    def forward(self, crops: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """crops: (1 + rows * columns) x 3 x side x side, the whole first. Returns 1 x tokens x hidden."""
        self.seen = self.features(crops)
        parts = self.grid(self.seen[1:], rows, columns)
        return self.img_projection(torch.cat([parts, self.glb_GN[0], self.grid(self.seen[:1], 1, 1)])[None])


class Phi35V(Family):
    name = "phi35v-odd"
    dtype = torch.bfloat16
    seed = 6
    special = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|image|>"]

    def config(self, ids) -> dict:
        return {
            "architectures": ["Phi3VForCausalLM"], "model_type": "phi3_v", "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
            "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig", "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM"},
            "embd_layer": {"embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp",
                           "use_hd_transform": True, "with_learnable_separator": True},
            "embd_pdrop": 0.0, "resid_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 72, "intermediate_size": 132,
            "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": 2048,
            "original_max_position_embeddings": 150, "rms_norm_eps": 1e-6, "rope_theta": 20000.0, "sliding_window": 2048,
            "rope_scaling": {"long_factor": [1.05, 1.4, 2.3, 4.1, 8.7, 13.6], "short_factor": [1.0, 1.03, 1.08, 1.1, 1.25, 1.3],
                             "type": "su"},
            "img_processor": {"image_dim_out": 48, "model_name": "openai/clip-vit-large-patch14-336", "name": "clip_vision_model",
                              "num_img_tokens": 9},
            "initializer_range": 0.02, "tie_word_embeddings": False, "torch_dtype": self.stored_dtype(), "use_cache": True,
            "transformers_version": "4.38.1", "vocab_size": ROWS, "pad_token_id": ids("<|endoftext|>"),
            "tiny_clip_config": {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 4, "num_attention_heads": 3,
                                 "image_size": 42, "patch_size": 7, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
                                 "projection_dim": 48},
        }  # fmt: skip

    def write_files(self) -> None:
        eats_space = {"<|assistant|>", "<|end|>", "<|user|>", "<|system|>"}  # as in the published tokenizer
        extra = [AddedToken(t, special=True, normalized=False, rstrip=t in eats_space) for t in self.special]
        tok = sentencepiece_bpe.llama(210, extra, seed=9, legacy=True)
        assert tok.get_vocab_size() < ROWS, tok.get_vocab_size()
        byte_level_bpe.write(tok, self.folder, {
            "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>",
            "pad_token": "<|endoftext|>", "legacy": False, "model_max_length": 2048, "padding_side": "right", "sp_model_kwargs": {},
            "clean_up_tokenization_spaces": False, "tokenizer_class": "LlamaTokenizer", "use_default_system_prompt": False,
            "chat_template": TEMPLATE,
        })  # fmt: skip
        ids = tok.token_to_id
        ends = [ids(t) for t in ("<|endoftext|>", "<|assistant|>", "<|end|>")]
        self.write_json(
            config=self.config(ids),
            preprocessor_config={
                "num_crops": 5, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "num_img_tokens": 9, "tiny_crop_size": 42,
                "image_processor_type": "Phi3VImageProcessor", "processor_class": "Phi3VProcessor",
                "auto_map": {"AutoProcessor": "processing_phi3_v.Phi3VProcessor",
                             "AutoImageProcessor": "processing_phi3_v.Phi3VImageProcessor"},
            },
            generation_config={"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": ends[0]},
        )  # fmt: skip

    def build(self) -> nn.Module:
        config = self.read_json("config")
        names = ("vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads rms_norm_eps "
                 "rope_theta max_position_embeddings original_max_position_embeddings hidden_act bos_token_id eos_token_id pad_token_id "
                 "sliding_window tie_word_embeddings").split()  # fmt: skip
        text = transformers.Phi3Config(
            **{k: config[k] for k in names}, rope_scaling=config["rope_scaling"] | {"type": "longrope"},
            attention_dropout=0.0, embd_pdrop=0.0, resid_pdrop=0.0, attn_implementation="eager",
        )  # fmt: skip
        model = transformers.Phi3ForCausalLM(text)
        model.model.vision_embed_tokens = ImagePart(config["tiny_clip_config"], config["hidden_size"])
        return model.float().eval()

    def write_weights(self) -> None:
        model = self.build()
        weights.fill(model, self.seed, self.dtype)
        tokens = Tokenizer.from_file(str(self.folder / "tokenizer.json")).get_vocab_size()
        weights.hush_rows(model.lm_head.weight, [*range(3 + len(self.special)), *range(tokens, ROWS)])
        weights.write_shards(model.state_dict(), self.folder, self.dtype, self.shards)

    def load(self) -> None:
        self.model = self.build()
        stored = load_file(self.folder / "model.safetensors")
        self.model.load_state_dict({k: v.float() for k, v in stored.items()}, strict=True)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.about = self.read_json("preprocessor_config")

    def samples(self) -> list[Sample]:
        long = "Then the first circle follows the other one. " * 6
        return [
            Sample("image", "What does the picture show?", [media.image(51, 97, 61)]),
            Sample("image", "How many circles? Größe: 12 cm ☃", [media.image(52, 40, 130)]),
            Sample("image", long + "Where does it end?", [media.image(53, 60, 60)]),
        ]

    def prompt(self, sample: Sample) -> str:
        content = f"<|image_1|>\n{sample.question}"
        return self.tokenizer.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)

    def run(self, sample: Sample) -> Run:
        crop, most = self.about["tiny_crop_size"], self.about["num_crops"]
        canvas = fit_crops(sample.media[0], crop, most)
        rows, columns = canvas.height // crop, canvas.width // crop
        crops, part, recorder = to_crops(canvas, crop, most), self.model.model.vision_embed_tokens, Recorder()
        recorder.watch(part, "projector_out")
        with torch.no_grad():
            visual = part(crops[0, : 1 + rows * columns], rows, columns)
            recorder.close()
            # every chunk of text is encoded by itself and so begins with the start token
            before, after = (self.tokenizer(chunk).input_ids for chunk in re.split(r"<\|image_\d+\|>", self.prompt(sample)))
            ids = torch.tensor(before + [IMAGE] * visual.shape[1] + after)
            embedded = self.model.model.embed_tokens(ids.clamp(min=0))[None]
            embedded[0, len(before) : len(before) + visual.shape[1]] = visual[0]
            out = self.model(inputs_embeds=embedded, output_hidden_states=True)
        tensors = recorder.kept | {
            "input_ids": ids, "pixel_values": crops, "vision_out": part.seen, "logits_first": out.logits[0, -1],
            "logits_argmax_all": out.logits[0].argmax(-1), "lm_hidden_last": last_position(out.hidden_states),
        }  # fmt: skip
        mask = torch.ones(embedded.shape[:2], dtype=torch.long)
        chosen, leads = greedy(self.model, {"inputs_embeds": embedded, "attention_mask": mask}, pad_token_id=self.pad_token())
        return Run(tensors, chosen, leads, {"prompt": self.prompt(sample), "image_sizes": [[canvas.height, canvas.width]]})

    def end_tokens(self) -> list[int]:
        return self.read_json("generation_config")["eos_token_id"]

    def pad_token(self) -> int:
        return self.end_tokens()[0]
