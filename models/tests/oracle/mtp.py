#!/usr/bin/env python3
"""Writes what the layer of Qwen3.5 that predicts further tokens (`mtp`) gives for random hidden states, computed in f64 with NumPy.

    python mtp.py ../data/qwen35-odd

The values go to `goldens/mtp.safetensors` in the folder of the checkpoint. transformers has no such layer; it is written here after
the published descriptions: norms of the next token's embedding and of the hidden state, in this order, are joined and projected, and
pass one layer of gated attention and a norm; the hidden states of the model are those after its last norm.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors import deserialize
from safetensors.numpy import save_file

DRAFTED = 4
MIN_LEAD = 0.05  # logits; a smaller lead of a drafted token would make it a matter of rounding
# Text, a picture of 2 x 3 tokens, text.
POSITIONS = [(i, i, i) for i in range(6)] + [(6, 6 + h, 6 + w) for h in range(2) for w in range(3)] + [(i, i, i) for i in range(9, 20)]


def tensors(file: Path) -> dict:
    """The tensors of a file of f32 and bf16 values, in f64."""
    found = {}
    for name, about in deserialize(file.read_bytes()):
        data = np.frombuffer(about["data"], {"BF16": np.uint16, "F32": np.float32}[about["dtype"]])
        if about["dtype"] == "BF16":
            data = (data.astype(np.uint32) << 16).view(np.float32)
        found[name] = data.astype(np.float64).reshape(about["shape"])
    return found


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * (1 + weight)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class Layer:
    """The layer with the keys and values of the tokens so far."""

    def __init__(self, folder: Path):
        self.c = json.loads((folder / "config.json").read_text())["text_config"]
        state = tensors(folder / "model.safetensors")
        self.w = {name.removeprefix("mtp.").removesuffix(".weight"): state[name] for name in state if name.startswith("mtp.")}
        self.embeddings = state["model.language_model.embed_tokens.weight"]
        self.keys, self.values = [], []

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return rms_norm(x, self.w[name], self.c["rms_norm_eps"])

    def product(self, x: np.ndarray, name: str) -> np.ndarray:
        return self.w[name] @ x

    def rotated(self, head: np.ndarray, position: tuple) -> np.ndarray:
        rope = self.c["rope_parameters"]
        half = int(self.c["head_dim"] * rope["partial_rotary_factor"]) // 2
        sections = rope["mrope_section"]
        out = head.copy()
        for i in range(half):
            axis = i % 3 if i % 3 and i < 3 * sections[i % 3] else 0
            angle = position[axis] * float(rope["rope_theta"]) ** (-i / half)
            a, b = head[i], head[i + half]
            out[i], out[i + half] = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
        return out

    def attention(self, x: np.ndarray, position: tuple) -> np.ndarray:
        a, size = "layers.0.self_attn.", self.c["head_dim"]
        queries = self.product(x, a + "q_proj").reshape(-1, 2, size)
        keys = self.product(x, a + "k_proj").reshape(-1, size)
        self.keys.append([self.rotated(k, position) for k in self.norm(keys, a + "k_norm")])
        self.values.append(self.product(x, a + "v_proj").reshape(-1, size))
        shared = len(queries) // len(keys)
        out = []
        for head, (query, gate) in enumerate(queries):
            query = self.rotated(self.norm(query, a + "q_norm"), position)
            scores = np.array([k[head // shared] @ query for k in self.keys]) / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            mean = weights @ np.array([v[head // shared] for v in self.values]) / weights.sum()
            out.append(mean * sigmoid(gate))
        return self.product(np.concatenate(out), a + "o_proj")

    def forward(self, hidden: np.ndarray, token: int, position: tuple) -> np.ndarray:
        """The output for a token's hidden state and the token after it."""
        embedding = self.norm(self.embeddings[token], "pre_fc_norm_embedding")
        x = self.product(np.concatenate([embedding, self.norm(hidden, "pre_fc_norm_hidden")]), "fc")
        x = x + self.attention(self.norm(x, "layers.0.input_layernorm"), position)
        normed, m = self.norm(x, "layers.0.post_attention_layernorm"), "layers.0.mlp."
        gate = self.product(normed, m + "gate_proj")
        x = x + self.product(gate * sigmoid(gate) * self.product(normed, m + "up_proj"), m + "down_proj")
        return self.norm(x, "norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    layer, rng = Layer(args.folder), np.random.default_rng(args.seed)
    count = len(POSITIONS)
    tokens = rng.integers(0, layer.c["vocab_size"], count + 1).tolist()
    hidden = rng.standard_normal((count, layer.c["hidden_size"])).astype(np.float32)
    pairs = zip(hidden.astype(np.float64), tokens[1:], POSITIONS)
    output = np.array([layer.forward(h, token, position) for h, token, position in pairs])
    draft, logits, last = [], [], output[-1]
    while len(draft) < DRAFTED:
        logits.append(layer.embeddings @ last)
        draft.append(int(logits[-1].argmax()))
        position = POSITIONS[-1][0] + len(draft)
        last = layer.forward(last, draft[-1], (position,) * 3)
    best = np.sort(logits, axis=1)
    lead = float((best[:, -1] - best[:, -2]).min())
    if lead < MIN_LEAD or len(set(draft)) < DRAFTED:
        raise SystemExit(f"try another seed: drafted {draft}, smallest lead {lead}")
    values = {
        "hidden": hidden, "tokens": np.array(tokens, np.int32), "position_ids": np.array(POSITIONS, np.int32).T.copy(),
        "output": output.astype(np.float32), "draft": np.array(draft, np.int32), "draft_logits": np.array(logits, np.float32),
    }  # fmt: skip
    save_file(values, args.folder / "goldens" / "mtp.safetensors")
    print(f"{count} tokens, drafted {draft}, smallest lead {lead:.3f}")


if __name__ == "__main__":
    main()
