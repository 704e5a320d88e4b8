"""`llava-odd`: LLaVA-1.5 with grouped-query attention, another patch size and another feature layer than published.

The tower has five layers of which three run (`vision_feature_layer` -3); the shorter edge is resized to 80 and then 70 are
cut out of the middle. Read `modeling_llava.py` and `modeling_clip.py` of transformers for the model itself.
"""

import torch
import transformers

import byte_level_bpe
import media
import sentencepiece_bpe
import weights
from family import CLIP_MEAN, CLIP_STD, Family
from goldens import Sample

ROWS = 499
# The form of LLaVA-1.5, images before text, in a template of our own.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}ASSISTANT: {% elif message['role'] == 'user' %}USER: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class Llava(Family):
    name = "llava-odd"
    architecture = "LlavaForConditionalGeneration"
    dtype = torch.bfloat16
    seed = 3

    def config(self, ids) -> dict:
        stored = {"torch_dtype": self.stored_dtype()}
        return {
            "architectures": [self.architecture], "model_type": "llava", "ignore_index": -100, "image_seq_length": 49,
            "image_token_index": ids("<image>"), "pad_token_id": ids("<pad>"), "projector_hidden_act": "gelu",
            "tie_word_embeddings": False, "vision_feature_layer": -3, "vision_feature_select_strategy": "default",
            "transformers_version": "4.46.0",
            "text_config": {
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 72, "intermediate_size": 132,
                "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 1024,
                "rms_norm_eps": 1e-6, "rope_theta": 50000.0, "hidden_act": "silu", "vocab_size": ROWS,
                "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": ids("<pad>"),
            } | stored,
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 5,
                "num_attention_heads": 3, "image_size": 70, "patch_size": 10, "projection_dim": 48,
                "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
            },
        } | stored  # fmt: skip

    def write_files(self) -> None:
        tok = sentencepiece_bpe.llama(210, ["<image>", "<pad>"], seed=5, legacy=False)
        assert tok.get_vocab_size() < ROWS, tok.get_vocab_size()
        self.tokens = tok.get_vocab_size()
        byte_level_bpe.write(tok, self.folder, {
            "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
            "pad_token": "<pad>", "image_token": "<image>", "legacy": False, "model_max_length": 1024, "padding_side": "left",
            "processor_class": "LlavaProcessor", "clean_up_tokenization_spaces": False, "tokenizer_class": "LlamaTokenizer",
            "sp_model_kwargs": {}, "use_default_system_prompt": False, "chat_template": TEMPLATE,
        })  # fmt: skip
        ids = tok.token_to_id
        self.write_json(
            config=self.config(ids), chat_template={"chat_template": TEMPLATE},
            preprocessor_config={
                "crop_size": {"height": 70, "width": 70}, "size": {"shortest_edge": 80}, "do_center_crop": True, "do_convert_rgb": True,
                "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
                "resample": 3, "rescale_factor": 1 / 255, "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor",
            },
            processor_config={"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 10,
                              "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default"},
            generation_config={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": ids("<pad>")},
        )  # fmt: skip

    def adjust(self, model) -> None:
        weights.hush_rows(model.lm_head.weight, [*range(5), *range(self.tokens, ROWS)])

    def load_processor(self) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        about = self.read_json("processor_config")
        about.pop("processor_class")
        self.processor = transformers.LlavaProcessor(
            image_processor=transformers.CLIPImageProcessor.from_pretrained(self.folder), tokenizer=self.tokenizer,
            chat_template=TEMPLATE, **about,
        )  # fmt: skip

    def samples(self) -> list[Sample]:
        clear = media.image(13, 200, 90)
        clear.putalpha(media.image(14, 200, 90).convert("L"))  # the reference drops transparency
        return [
            Sample("image", "What does the picture show?", [media.image(11, 97, 61)]),
            Sample("image", "How many circles? Größe: 12 cm ☃", [media.image(12, 50, 123)]),
            Sample("image", "Describe the upper edge.\nThen the lower.", [clear]),
        ]

    def prompt(self, sample: Sample) -> str:
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def inputs(self, sample: Sample) -> dict:
        return dict(self.processor(images=sample.media, text=self.prompt(sample), return_tensors="pt"))

    def before(self, inputs: dict) -> dict:
        return {"pixel_values": inputs["pixel_values"]}

    def watch(self, recorder) -> None:
        recorder.watch(self.model.model.vision_tower.vision_model.embeddings, "patch_embed")
        recorder.watch(self.model.model.multi_modal_projector, "vision_out", of_input=True)
        recorder.watch(self.model.model.multi_modal_projector, "projector_out")

    def end_tokens(self) -> list[int]:
        return [2]

    def pad_token(self) -> int:
        return self.tokenizer.pad_token_id
