"""Writes the reference values of the preprocessing tests next to this file.

    pip install pillow==13.0.0 torch==2.7.1 torchvision==0.22.1 transformers==4.57.6 numpy
    python make_fixtures.py [resize] [qwen2_vl] [clip] [interpolate] [mel]

Images are not stored: both sides make them from a seed (`noise` here, `noise` in the tests).
Results are stored as a checksum (FNV-1a, 64 bits) and their first bytes.
"""
import json, os, random, sys
import numpy as np
import torch
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def noise(seed, width, height):
    """Bytes of a counter-based generator (the finaliser of SplitMix64), [height, width, 3]."""
    x = np.arange(width * height * 3, dtype=np.uint64) + np.uint64(seed << 32)
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(56)).astype(np.uint8).reshape(height, width, 3)


def checksum(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def write(name, value):
    with open(f"{HERE}/{name}.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(v) for v in value) + "\n]\n")


def sizes():
    rng = random.Random(1)
    fixed = [(1, 1, 1, 1), (1, 1, 5, 7), (5, 7, 1, 1), (2, 3, 3, 2), (64, 64, 64, 64), (64, 64, 64, 31), (64, 64, 31, 64),
             (112, 112, 336, 336), (300, 200, 308, 196), (97, 150, 84, 140), (640, 480, 224, 224), (1, 200, 28, 812),
             (200, 1, 812, 28), (1000, 10, 28, 28), (10, 1000, 560, 28), (255, 257, 256, 256), (256, 256, 255, 257)]
    free = [tuple(round(2 ** rng.uniform(0, 8)) for _ in range(4)) for _ in range(60)]
    near = [(w, h, max(1, w + rng.randint(-3, 3)), max(1, h + rng.randint(-3, 3))) for w, h in ((rng.randint(3, 90), rng.randint(3, 90)) for _ in range(20))]
    return fixed + free + near


def resize():
    import torchvision.transforms.v2.functional as F
    rows = []
    for seed, (w, h, nw, nh) in enumerate(sizes()):
        pixels = noise(seed, w, h)
        for name, pillow in FILTERS.items():
            a = np.asarray(Image.fromarray(pixels).resize((nw, nh), pillow))
            row = {"from": [w, h], "to": [nw, nh], "filter": name, "pillow": checksum(a.tobytes()), "pillow_head": a.flatten()[:12].tolist()}
            if name == "bilinear":      # torchvision's depends on the CPU
                rows.append(row)
                continue
            try:
                t = F.resize(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous(), [nh, nw], F.InterpolationMode.BICUBIC, antialias=True)
            except RuntimeError:        # an internal assertion of torch 2.7.1, seen at 1x1
                print(f"torchvision cannot resize {w}x{h} to {nw}x{nh}")
            else:
                b = t[0].permute(1, 2, 0).contiguous().numpy()
                row |= {"torchvision": checksum(b.tobytes()), "torchvision_head": b.flatten()[:12].tolist()}
            rows.append(row)
    write("resize", rows)


def qwen2_vl():
    """Sizes, sums and first values of images and videos, by the reference's processors."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    rows = []
    limits = {"min_pixels": 3136, "max_pixels": 200704}
    for seed, (w, h, frames) in enumerate([(112, 112, 0), (97, 150, 0), (300, 200, 0), (640, 480, 0), (28, 29, 0), (5, 700, 0), (30, 41, 1), (97, 150, 3), (320, 240, 4), (640, 480, 2)]):
        images = [noise(seed * 16 + i, w, h) for i in range(max(frames, 1))]
        if frames:
            out = Qwen2VLVideoProcessor(**limits)([torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)], return_tensors="pt")
            values, grid = out["pixel_values_videos"], out["video_grid_thw"][0].tolist()
        else:
            out = Qwen2VLImageProcessor(**limits)([Image.fromarray(images[0])], return_tensors="pt")
            values, grid = out["pixel_values"], out["image_grid_thw"][0].tolist()
        values = values.float().numpy()
        rows.append({"size": [w, h], "frames": frames, "grid": grid, "checksum": checksum(values.tobytes()), "head": values.flatten()[:8].tolist()})
    write("qwen2_vl", rows)
    rng = random.Random(2)
    rows = []
    for _ in range(400):
        h, w = (round(2 ** rng.uniform(0, 13)) for _ in range(2))
        factor = rng.choice([28, 28, 32, 14])
        low = rng.choice([3136, 100352, 4 * factor * factor])
        high = rng.choice([12845056, 1003520, 602112, max(low, 64 * factor * factor)])
        try:
            to = smart_resize(h, w, factor, low, high)
        except ValueError:
            to = None
        rows.append([h, w, factor, low, high, to])
    rows += [[h, w, 28, 3136, 12845056, smart_resize(h, w, 28, 3136, 12845056)] for h in range(14, 155, 14) for w in (126, 70)]
    write("smart_resize", rows)


def clip():
    """Checksums of images by the processors of CLIP and BLIP."""
    from transformers import BlipImageProcessor, CLIPImageProcessor
    rows = []
    for name, maker in (("CLIPImageProcessor", CLIPImageProcessor), ("BlipImageProcessor", BlipImageProcessor)):
        blip = name.startswith("Blip")
        configs = [{}, {"size": {"height": 60, "width": 45}} if blip else {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}]
        if not blip:
            configs += [{"size": {"shortest_edge": 40}, "crop_size": {"height": 57, "width": 44}}, {"size": {"shortest_edge": 41}, "crop_size": 38, "resample": 2},
                        {"do_resize": False, "crop_size": {"height": 64, "width": 65}}, {"size": {"shortest_edge": 33}, "do_center_crop": False}]
        for config in configs:
            for seed, (w, h) in enumerate([(112, 112), (97, 150), (300, 201), (40, 37)]):
                if blip and not config and seed > 1:
                    continue
                values = maker(**config)([Image.fromarray(noise(seed, w, h))], return_tensors="np")["pixel_values"][0]
                rows.append({"config": config | {"image_processor_type": name}, "size": [w, h], "shape": list(values.shape),
                             "checksum": checksum(values.astype("<f4").tobytes()), "head": values.flatten()[:6].astype(float).tolist()})
    write("clip", rows)


def interpolate():
    """Planes of values by torch.nn.functional.interpolate."""
    rows = []
    for seed, (w, h, nw, nh) in enumerate([(9, 7, 4, 4), (5, 6, 11, 8), (1, 1, 3, 2), (2, 3, 2, 2), (40, 24, 8, 8), (3, 50, 6, 7)]):
        planes = torch.from_numpy(noise(seed, w, h)).permute(2, 0, 1)[None].float() / 255
        out = torch.nn.functional.interpolate(planes, size=(nh, nw), mode="bicubic", align_corners=False)
        rows.append({"from": [w, h], "to": [nw, nh], "values": out.flatten().tolist()})
    write("interpolate", rows)


def mel():
    """Frames of spectrograms by WhisperFeatureExtractor."""
    from transformers import WhisperFeatureExtractor
    rows = []
    for seed, (bins, length) in enumerate([(80, 16000), (128, 100), (80, 12345), (128, 480000), (80, 500000)]):
        samples = (noise(seed, length, 1).reshape(-1)[:length].astype(np.float32) - 128) / 512
        tone = np.sin(np.arange(length) * np.float64(0.05 + 0.1 * seed)) / 2        # in 64 bits on both sides
        samples = (samples + tone.astype(np.float32)).astype(np.float32)
        out = WhisperFeatureExtractor(feature_size=bins)(samples, sampling_rate=16000, return_tensors="np", return_attention_mask=True)
        values, valid = out["input_features"][0], int(out["attention_mask"].sum())
        frames = sorted({0, 1, 2, valid // 2, max(valid - 2, 0), valid - 1, min(valid, 2999), 2998, 2999})
        rows.append({"bins": bins, "samples": length, "valid": valid, "frames": {str(f): [round(float(v), 6) for v in values[:, f]] for f in frames}})
    write("mel", rows)


if __name__ == "__main__":
    for name in sys.argv[1:] or ["resize", "qwen2_vl", "clip", "interpolate", "mel"]:
        globals()[name]()
