#!/usr/bin/env python3
"""Prints what devices can do at best with the families at their published sizes, as a Markdown table.

The sizes of published checkpoints replace those in the JSON files of the test checkpoints, and
`edge-lmm-convert --random-weights --dry-run` estimates each model in the default formats: its size, and
for each device the time to the first token of an answer about an image and the tokens per second after
it. Nothing is converted. Times are those of the roofline of each stage (docs/devices.md): no device is
faster. Needs Python 3.9, no packages.

    python3 targets/family_estimates.py --program target/release/edge-lmm-convert
"""
import argparse
import concurrent.futures
import json
import pathlib
import re
import shutil
import subprocess
import tempfile

DATA = pathlib.Path(__file__).parent.parent / "models/tests/data"
DEVICES = {"Raspberry Pi 5, 8 GB": "raspberry-pi-5-8gb", "Jetson Orin Nano": "jetson-orin-nano"}


def decoder(hidden, layers, heads, kv_heads, ffn, vocabulary, **others):
    """Returns fields that most language models share."""
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": ffn, "vocab_size": vocabulary, "max_position_embeddings": 32768, **others,
    }  # fmt: skip


def tower(hidden, layers, heads, ffn, **others):
    """Returns fields of the encoders of SigLIP and CLIP."""
    return {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": ffn, **others}


def qwen_tower(hidden, layers, heads, ffn, out, **others):
    """Returns fields of the encoders of Qwen2.5 and later."""
    return {"hidden_size": hidden, "depth": layers, "num_heads": heads, "intermediate_size": ffn, "out_hidden_size": out, **others}


def mrope(*sections):
    return {"mrope_section": list(sections)}


def windows(out):
    """Returns the encoder of Qwen2.5-VL and Qwen2.5-Omni."""
    return qwen_tower(1280, 32, 16, 3420, out, window_size=112, fullatt_block_indexes=[7, 15, 23, 31])


PIXELS = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}
QWEN2_PIXELS = {"min_pixels": 3136, "max_pixels": 12845056}
CLIP_336 = tower(1024, 24, 16, 4096, image_size=336, patch_size=14, projection_dim=768)
SO400M = (1152, 27, 16, 4304)


def qwen3_vl(hidden, layers, heads, ffn):
    text = decoder(hidden, layers, heads, 8, ffn, 151936, head_dim=128, rope_scaling=mrope(24, 20, 20))
    vision = qwen_tower(1024, 24, 16, 4096, hidden, num_position_embeddings=2304, deepstack_visual_indexes=[5, 11, 17])
    return {"text_config": text, "vision_config": vision}, PIXELS


def qwen3_5(vision, text, value_heads):
    hidden, layers, heads, kv_heads, ffn = text
    types = ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(layers)]
    delta = {
        "linear_num_key_heads": 16, "linear_num_value_heads": value_heads, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    }  # fmt: skip
    text = decoder(
        hidden, layers, heads, kv_heads, ffn, 248320, head_dim=256, layer_types=types, rope_parameters=mrope(11, 11, 10), **delta
    )
    vision = qwen_tower(*vision, hidden, num_position_embeddings=2304)
    return {"text_config": text, "vision_config": vision}, PIXELS


def smolvlm(text, vision, tile, patch, shuffle, edge):
    hidden, layers, heads, kv_heads, ffn = text
    text = decoder(hidden, layers, heads, kv_heads, ffn, 49280, head_dim=64, pixel_shuffle_factor=shuffle)
    vision = tower(*vision, image_size=tile, patch_size=patch)
    config = {"text_config": text, "vision_config": vision, "scale_factor": shuffle, "vocab_size": 49280}
    return config, {"max_image_size": {"longest_edge": tile}, "size": {"longest_edge": edge}}


def gemma3():
    text = decoder(2560, 34, 8, 4, 10240, 262208, head_dim=256, query_pre_attn_scalar=256, sliding_window=1024)
    config = {"text_config": text, "vision_config": tower(*SO400M, image_size=896, patch_size=14), "mm_tokens_per_image": 256}
    return config, {"size": {"height": 896, "width": 896}, "image_seq_length": 256}


def gemma3_text(hidden, layers, ffn):
    return decoder(hidden, layers, 4, 1, ffn, 262144, head_dim=256, query_pre_attn_scalar=256, sliding_window=512), {}


def lfm2_vl(text, vision):
    hidden, heads, kv_heads, ffn = text
    types = ["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)]
    text = decoder(hidden, 16, heads, kv_heads, ffn, 65536, block_ff_dim=ffn, block_multiple_of=256, layer_types=types)
    tiles = {"min_image_tokens": 64, "max_image_tokens": 256, "tile_size": 512, "min_tiles": 2, "max_tiles": 10, "max_num_patches": 1024}
    config = {"text_config": text, "vision_config": tower(*vision, num_patches=256), "projector_hidden_size": 2560, **tiles}
    return config, tiles


def qwen2_vl(hidden, heads, kv_heads, ffn, vocabulary, tied):
    vision = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": hidden}
    text = decoder(hidden, 28, heads, kv_heads, ffn, vocabulary, rope_scaling=mrope(16, 24, 24), tie_word_embeddings=tied)
    return {**text, "vision_config": vision}, QWEN2_PIXELS


def qwen2_5_vl():
    text = decoder(2048, 36, 16, 2, 11008, 151936, rope_scaling=mrope(16, 24, 24))
    return {**text, "vision_config": windows(2048)}, QWEN2_PIXELS


def qwen2_5_omni():
    text = decoder(2048, 36, 16, 2, 11008, 151936, rope_scaling=mrope(16, 24, 24))
    audio = {
        "d_model": 1280, "encoder_layers": 32, "num_hidden_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "n_window": 100, "output_dim": 2048,
    }  # fmt: skip
    vision = {**windows(2048), "embed_dim": 1280}
    return {"thinker_config": {"text_config": text, "vision_config": vision, "audio_config": audio}}, QWEN2_PIXELS


def llava():
    text = decoder(4096, 32, 32, 32, 11008, 32064)
    config = {"text_config": text, "vision_config": CLIP_336, "vision_feature_layer": -2, "image_seq_length": 576}
    return config, {"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336}}


def blip2():
    text = {
        "hidden_size": 2560, "word_embed_proj_dim": 2560, "ffn_dim": 10240, "num_hidden_layers": 32, "num_attention_heads": 32,
        "max_position_embeddings": 2048, "vocab_size": 50304,
    }  # fmt: skip
    vision = tower(1408, 39, 16, 6144, image_size=224, patch_size=14)
    qformer = tower(768, 12, 12, 3072, encoder_hidden_size=1408)
    config = {"text_config": text, "vision_config": vision, "qformer_config": qformer, "num_query_tokens": 32}
    return config, {"size": {"height": 224, "width": 224}}


def phi3_v():
    factors = {"type": "su", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}
    config = decoder(3072, 32, 32, 32, 8192, 32064, original_max_position_embeddings=4096, rope_scaling=factors)
    # The vision tower of the test checkpoint is given in the configuration, that of the published one by its name.
    config |= {"img_processor": {"image_dim_out": 1024, "num_img_tokens": 144}, "tiny_clip_config": CLIP_336}
    return config, {"num_crops": 4, "num_img_tokens": 144, "tiny_crop_size": 336}


def qwen2_audio():
    text = decoder(4096, 32, 32, 32, 11008, 156032)
    audio = {
        "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "num_mel_bins": 128,
        "max_source_positions": 1500,
    }  # fmt: skip
    sound = {"chunk_length": 30, "feature_size": 128, "n_samples": 480000, "nb_max_frames": 3000}
    return {"text_config": text, "audio_config": audio, "vocab_size": 156032}, sound


SMALL_VIT, BASE_VIT = (768, 12, 12, 3072), (1024, 24, 16, 4096)
SIGLIP_BASE = (768, 12, 12, 3072)
MODELS = {
    "SmolVLM2 256M": ("smolvlm2-odd", smolvlm((576, 30, 9, 3, 1536), SIGLIP_BASE, 512, 16, 4, 2048)),
    "SmolVLM2 500M": ("smolvlm2-odd", smolvlm((960, 32, 15, 5, 2560), SIGLIP_BASE, 512, 16, 4, 2048)),
    "SmolVLM2 2.2B": ("smolvlm2-odd", smolvlm((2048, 24, 32, 32, 8192), SO400M, 384, 14, 3, 1536)),
    "LFM2-VL 450M": ("lfm2vl-odd", lfm2_vl((1024, 16, 8, 6656), SIGLIP_BASE)),
    "LFM2-VL 1.6B": ("lfm2vl-odd", lfm2_vl((2048, 32, 8, 12288), SO400M)),
    "Qwen3.5 0.8B": ("qwen35-odd", qwen3_5(SMALL_VIT, (1024, 24, 8, 2, 3584), 16)),
    "Qwen3.5 2B": ("qwen35-odd", qwen3_5(BASE_VIT, (2048, 24, 8, 2, 6144), 16)),
    "Qwen3.5 4B": ("qwen35-odd", qwen3_5(BASE_VIT, (2560, 32, 16, 4, 9216), 32)),
    "Qwen3-VL 2B": ("qwen3vl-odd", qwen3_vl(2048, 28, 16, 6144)),
    "Qwen3-VL 4B": ("qwen3vl-odd", qwen3_vl(2560, 36, 32, 9728)),
    "Qwen2-VL 2B": ("qwen2vl-odd", qwen2_vl(1536, 12, 2, 8960, 151936, True)),
    "Qwen2.5-VL 3B": ("qwen25vl-odd", qwen2_5_vl()),
    "Qwen2.5-Omni 3B": ("qwen25omni-odd", qwen2_5_omni()),
    "Gemma 3 270M": ("gemma3text-odd", gemma3_text(640, 18, 2048)),
    "Gemma 3 1B": ("gemma3text-odd", gemma3_text(1152, 26, 6912)),
    "Gemma 3 4B": ("gemma3-odd", gemma3()),
    "BLIP-2 OPT 2.7B": ("blip2-odd", blip2()),
    "LLaVA-1.5 7B": ("llava-odd", llava()),
    "Phi-3.5-Vision 4.2B": ("phi35v-odd", phi3_v()),
    "Qwen2-Audio 7B": ("qwen2audio-odd", qwen2_audio()),
}


def merged(old, new):
    """Returns a configuration with other values."""
    return {**old, **{key: merged(old.get(key, {}), value) if isinstance(value, dict) else value for key, value in new.items()}}


def write(folder, checkpoint, config, processor):
    """Writes the JSON files of a checkpoint with other sizes."""
    for file in (DATA / checkpoint).iterdir():
        if file.suffix in (".json", ".model", ".jinja") and "index" not in file.name:
            shutil.copy(file, folder)
    for name, changes in (("config.json", config), ("preprocessor_config.json", processor)):
        path = folder / name
        if path.exists():
            path.write_text(json.dumps(merged(json.loads(path.read_text()), changes)))


def estimate(program, folder, device, size):
    """Returns the size of the record, whether it fits, the least seconds of each stage, and the tokens of the image."""
    command = [program, folder, "-o", f"{folder}/model.bpk", "--random-weights", "1", "--dry-run", "--force", "--target", device]
    command += ["--target-context", "2048", "--target-image-size", size]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr}")
    said = done.stderr
    rows = re.findall(r"^\| (vision|projector|prefill|decode) .* ([0-9.]+) ms", said, re.MULTILINE)
    weights = re.search(r"\(weights ([0-9.]+ [KMG]iB)", said)
    tokens = re.search(r"\(([0-9]+) tokens\)", said)
    return weights[1], "does not fit" not in said, {stage: float(time) / 1e3 for stage, time in rows}, int(tokens[1])


def row(name, program, size):
    checkpoint, (config, processor) = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder), checkpoint, config, processor)
        found = [estimate(program, folder, device, size) for device in DEVICES.values()]
    weights, _, _, tokens = found[0]
    cells = [name, weights, str(tokens or "-")]
    for _, fits, times, _ in found:
        first = sum(time for stage, time in times.items() if stage != "decode")
        cells += [f"{first:.2g} s", f"{1 / times['decode']:.0f}"] if fits else ["does not fit", "-"]
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="edge-lmm-convert")
    parser.add_argument("--image-size", default="512x512", metavar="WIDTHxHEIGHT")
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help=", ".join(MODELS))
    args = parser.parse_args()
    heads = [f"{device}: {what}" for device in DEVICES for what in ("first token", "tokens/s")]
    print("| model | record | visual tokens | " + " | ".join(heads) + " |")
    print("|---" * (3 + len(heads)) + "|")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for line in pool.map(lambda name: row(name, args.program, args.image_size), args.models):
            print(line, flush=True)


if __name__ == "__main__":
    main()
