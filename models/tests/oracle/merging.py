"""Golden values of token merging within the tower of qwen2vl-scenes, in NumPy and double precision.

Images with flat backgrounds have many equal units, between which rounding decides. The images here
have noisy backgrounds: single and double precision merge the same units.

    python merging.py ../data/qwen2vl-scenes ../data/scenes/images ../data/goldens/qwen2vl-scenes
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

IMAGES = ["scene_029", "scene_035"]
SHARE = 0.5
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
PATCH, MERGE, ROWS = 14, 2, 4


def read_weights(path):
    """Reads bfloat16 tensors, which NumPy has no type for."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    weights = {}
    for name, entry in header.items():
        assert entry["dtype"] == "BF16", name
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        bits = np.frombuffer(data[first:last], np.uint16).astype(np.uint32) << 16
        weights[name] = bits.view(np.float32).reshape(entry["shape"]).astype(np.float64)
    return weights


class Tower:
    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text())["vision_config"]
        self.depth, self.heads = config["depth"], config["num_heads"]
        self.width = config["embed_dim"]
        self.weights = read_weights(folder / "model.safetensors")

    def linear(self, x, name):
        weight = self.weights[f"visual.{name}.weight"]
        bias = self.weights.get(f"visual.{name}.bias", 0.0)
        return x @ weight.reshape(len(weight), -1).T + bias

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        return x * self.weights[f"visual.{name}.weight"] + self.weights[f"visual.{name}.bias"]

    def patches(self, image):
        """Returns patches in merge order, and row and column of each."""
        pixels = (np.asarray(image.convert("RGB")) / 255.0 - MEAN) / STD
        rows, columns = (side // PATCH for side in pixels.shape[:2])
        values, places = [], []
        for y in range(0, rows, MERGE):
            for x in range(0, columns, MERGE):
                for r, c in ((y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)):
                    patch = pixels[r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH]
                    # The image stands for both frames of a patch.
                    values.append(np.stack([patch.transpose(2, 0, 1)] * 2, 1).ravel())
                    places.append((r, c))
        return np.array(values), np.array(places), (1, rows, columns)

    def angles(self, places):
        quarter = self.width // self.heads // 4
        frequencies = 10000.0 ** (-np.arange(quarter) / quarter)
        half = np.concatenate([places[:, :1] * frequencies, places[:, 1:] * frequencies], 1)
        return np.concatenate([half, half], 1)

    def attend(self, x, block, angles, sizes):
        """Returns the attention's output, and the mean over heads of the keys before rotation."""
        qkv = self.linear(self.norm(x, f"blocks.{block}.norm1"), f"blocks.{block}.attn.qkv")
        q, k, v = qkv.reshape(len(x), 3, self.heads, -1).transpose(1, 2, 0, 3)
        keys = k.mean(0)
        first, second = lambda t: t[..., : t.shape[-1] // 2], lambda t: t[..., t.shape[-1] // 2 :]
        turn = lambda t: t * np.cos(angles) + np.concatenate([-second(t), first(t)], -1) * np.sin(angles)
        scores = turn(q) @ turn(k).transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        weights = np.exp(scores) * np.repeat(sizes, ROWS)
        weights /= weights.sum(-1, keepdims=True)
        attended = (weights @ v).transpose(1, 0, 2).reshape(x.shape)
        return x + self.linear(attended, f"blocks.{block}.attn.proj"), keys

    def mlp(self, x, block):
        hidden = self.linear(self.norm(x, f"blocks.{block}.norm2"), f"blocks.{block}.mlp.fc1")
        hidden /= 1.0 + np.exp(-1.702 * hidden)
        return x + self.linear(hidden, f"blocks.{block}.mlp.fc2")

    def merger(self, x):
        x = self.norm(x, "merger.ln_q").reshape(-1, ROWS * self.width)
        x = self.linear(x, "merger.mlp.0")
        erf = np.vectorize(math.erf)
        return self.linear(0.5 * x * (1.0 + erf(x / math.sqrt(2.0))), "merger.mlp.2")


def pairs(keys, count):
    """Returns places of the units to merge, and those that they are merged into."""
    metric = keys.reshape(len(keys) // ROWS, -1)
    metric = metric / np.linalg.norm(metric, axis=1, keepdims=True)
    similarity = metric[0::2] @ metric[1::2].T
    order = np.argsort(-similarity.max(1), kind="stable")[:count]
    return 2 * order, 2 * similarity.argmax(1)[order] + 1


def encode(tower, image):
    values, places, grid = tower.patches(image)
    x, angles = tower.linear(values, "patch_embed.proj"), tower.angles(places)
    units, sizes = np.arange(len(x) // ROWS), np.ones(len(x) // ROWS)
    total = len(units)
    share = math.floor(SHARE * total + 0.5) / total
    for block in range(tower.depth):
        x, keys = tower.attend(x, block, angles, sizes)
        wanted = math.floor(total * share ** ((block + 1) / tower.depth) + 0.5)
        merged, into = pairs(keys, len(units) - wanted)
        groups = x.reshape(len(units), ROWS, -1) * sizes[:, None, None]
        sums, counts = groups.copy(), sizes.copy()
        np.add.at(sums, into, groups[merged])
        np.add.at(counts, into, sizes[merged])
        left = np.setdiff1d(np.arange(len(units)), merged)
        x = (sums / counts[:, None, None])[left].reshape(-1, tower.width)
        angles = angles.reshape(len(units), ROWS, -1)[left].reshape(len(x), -1)
        units, sizes = units[left], counts[left]
        x = tower.mlp(x, block)
    return units, sizes, tower.merger(x), grid


def main():
    checkpoint, images, out = map(Path, sys.argv[1:])
    tower = Tower(checkpoint)
    for name in IMAGES:
        units, sizes, features, grid = encode(tower, Image.open(images / f"{name}.png"))
        tensors = {
            "keep": units.astype(np.int32),
            "size": sizes.astype(np.float32),
            "features": features.astype(np.float32),
            "grid_thw": np.array([grid], np.int32),
        }
        save_file(tensors, out / f"merge_{name}.safetensors")


if __name__ == "__main__":
    main()
