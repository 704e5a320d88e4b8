"""The profiler with PyTorch, and models of `transformers` made from small configurations."""

import sys
import types

import pytest

torch = pytest.importorskip("torch")

from edge_lmm.profiler import ModelProfiler  # noqa: E402


def modules(profiler):
    return profiler.report()["runs"][0]["modules"]


def stages(profiler):
    return {m["name"] for m in modules(profiler) if m["parent"] is None}


def test_any_module_is_profiled(schema):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    )
    profiler = ModelProfiler(model)
    profiler.start()
    model(torch.zeros(2, 3, 8, 8))
    profiler.stop()
    profiler.print_summary()
    schema.validate(profiler.report())
    found = {m["name"]: m for m in modules(profiler)}
    assert list(found) == ["model", "model.0", "model.1", "model.2", "model.3"]
    assert found["model.0"]["macs"] == 2 * 8 * 6 * 6 * 3 * 9
    assert found["model.3"]["macs"] == 2 * 288 * 10
    assert found["model"]["macs"] == found["model.0"]["macs"] + found["model.3"]["macs"]
    assert found["model.3"]["weight_bytes"] == 4 * (288 * 10 + 10)
    kinds = {kind for kind, _, _ in profiler.layers()}
    assert {"Convolution", "Activation", "Linear"} <= kinds
    environment = profiler.report()["environment"]
    assert (environment["program"], environment["version"]) == ("torch", torch.__version__)


@pytest.fixture(scope="module")
def transformers():
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 0):
        # The module of PyTorch 1.13 cannot be imported by Python 3.11.
        fsdp = types.ModuleType("torch.distributed.fsdp")
        fsdp.FullyShardedDataParallel = type("FullyShardedDataParallel", (), {})
        sys.modules.setdefault("torch.distributed.fsdp", fsdp)
        torch.distributed.fsdp = fsdp
    return pytest.importorskip("transformers")


TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def generate(profiler, model, inputs, tokens=3):
    profiler.start()
    output = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    profiler.stop()
    return output


def test_qwen2_vl(transformers, schema):
    config = transformers.Qwen2VLConfig(
        **TEXT,
        image_token_id=290,
        video_token_id=291,
        vision_start_token_id=292,
        vision_end_token_id=293,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},
    )
    model = transformers.Qwen2VLForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, 292, *[290] * 4, 293, 5]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.zeros(16, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    profiler = ModelProfiler(model)
    generate(profiler, model, inputs)
    schema.validate(profiler.report())
    assert stages(profiler) == {"vision", "projector", "prefill", "decode"}
    counts = profiler.report()["runs"][0]["tokens"]
    assert (counts["prompt"], counts["generated"], counts["visual"]) == (8, 3, 4)
    assert counts["encoder_misses"] == 1
    found = {(m["stage"], m["name"]): m for m in modules(profiler)}
    assert found["vision", "vision.blocks.1.mlp"]["calls"] == 1
    assert found["decode", "text.layers.1.attention"]["calls"] == 2
    assert found["decode", "text.head"]["macs"] == 2 * 32 * 300
    kinds = {kind for kind, _, _ in profiler.layers()}
    assert {"MLP", "Norm", "Attention projections", "Output head"} <= kinds
    assert "<- bottleneck" in profiler.summary()


def test_llava(transformers, schema):
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **CLIP},
        text_config={"model_type": "llama", **TEXT},
        image_token_index=290,
        vision_feature_layer=-2,
        image_seq_length=4,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, *[290] * 4, 5, 6]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.zeros(1, 3, 28, 28),
    }
    profiler = ModelProfiler(model)
    generate(profiler, model, inputs)
    schema.validate(profiler.report())
    assert stages(profiler) == {"vision", "projector", "prefill", "decode"}
    found = {(m["stage"], m["name"]) for m in modules(profiler)}
    assert ("vision", "vision.layers.0.attention.out") in found
    assert ("prefill", "text.layers.0.mlp.norm") in found


def test_blip2(transformers, schema):
    config = transformers.Blip2Config(
        vision_config=CLIP,
        qformer_config={**CLIP, "encoder_hidden_size": 32, "cross_attention_frequency": 1},
        text_config={
            "model_type": "opt",
            "vocab_size": 300,
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 128,
        },
        num_query_tokens=4,
        image_token_index=290,
    )
    model = transformers.Blip2ForConditionalGeneration(config).eval()
    ids = torch.tensor([[*[290] * 4, 2, 5, 6]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.zeros(1, 3, 28, 28),
    }
    profiler = ModelProfiler(model)
    # The encoders run outside of the call of the root.
    generate(profiler, model, inputs)
    schema.validate(profiler.report())
    assert stages(profiler) == {"vision", "projector", "prefill", "decode"}
    names = {m["name"] for m in modules(profiler)}
    assert any(name.startswith("projector.qformer.") for name in names)
    assert "text.layers.1.attention" in names


def test_a_language_model_and_an_encoder_alone(transformers):
    config = transformers.LlamaConfig(**TEXT)
    model = transformers.LlamaForCausalLM(config).eval()
    profiler = ModelProfiler(model)
    with profiler:
        model(torch.tensor([[1, 2, 3]]))
    assert stages(profiler) == {"prefill"}
    config = transformers.CLIPVisionConfig(**CLIP)
    model = transformers.CLIPVisionModel(config).eval()
    profiler = ModelProfiler(model)
    with profiler:
        model(torch.zeros(1, 3, 28, 28))
    assert stages(profiler) == {"vision"}
