"""Reports as tables."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

_MARK = " <- bottleneck"

_LAST = {
    "norm": "Norm",
    "scores": "Attention scores",
    "softmax": "Attention softmax",
    "values": "Attention values",
    "mlp": "MLP",
    "feed_forward": "MLP",
    "head": "Output head",
    "embedding": "Embedding",
    "patch_embed": "Patch embedding",
    "merge": "Token merging",
}

_ATTENTION = ("attention", "cross_attention", "ranking", "received")

# Types of PyTorch modules that no name of a known part describes.
_CLASSES = [
    ("Linear", "Linear"),
    ("Conv", "Convolution"),
    ("Norm", "Norm"),
    ("MultiheadAttention", "Attention, other"),
    ("Embedding", "Embedding"),
    ("GELU", "Activation"),
    ("ReLU", "Activation"),
    ("SiLU", "Activation"),
    ("Activation", "Activation"),
    ("Pool", "Pooling"),
    ("Dropout", "Dropout"),
]


def layers(
    modules: Sequence[Mapping[str, Any]], classes: Mapping[str, str] | None = None
) -> list[tuple[str, float, float]]:
    """Returns type of layer, milliseconds outside of inner modules and percentage of the total,
    the largest first. `classes` are the classes of PyTorch modules by their name."""
    times: dict[str, float] = {}
    for module in modules:
        kind = layer_type(module, (classes or {}).get(module["name"]))
        hidden = module["hidden_ms"] if module["parent"] is None else 0.0
        times[kind] = times.get(kind, 0.0) + module["own_ms"] - hidden
    total = sum(times.values())
    rows = sorted(times.items(), key=lambda row: -row[1])
    return [(kind, ms, 100.0 * ms / total if total else 0.0) for kind, ms in rows]


def layer_type(module: Mapping[str, Any], class_name: str | None = None) -> str:
    """Returns the type of layer that a module's own time belongs to."""
    if module["parent"] is None:
        return f"Other ({module['stage']})"
    parts = module["name"].split(".")
    last = parts[-1]
    if last in _LAST:
        return _LAST[last]
    if last in _ATTENTION:
        # PyTorch computes scores, softmax and values outside of any module.
        return "Attention, other" if class_name is None else "Attention scores and values"
    if class_name and "Norm" in class_name:
        return "Norm"
    if "attention" in parts or "cross_attention" in parts:
        return "Attention projections"
    if "mlp" in parts:
        return "MLP"
    if "patch_embed" in parts:
        return "Patch embedding"
    if "conv" in parts:
        return "Convolution"
    if module["stage"] == "projector":
        return "Projector"
    for part, kind in _CLASSES if class_name else []:
        if part in (class_name or ""):
            return kind
    # Layers of a stack and other containers.
    if last.isdigit() or class_name:
        return f"Other ({module['stage']})"
    return f"{last} ({module['stage']})"


def text(rows: Sequence[tuple[str, float, float]]) -> str:
    """Formats the rows of [layers] as a table, with the largest one marked."""
    cells = [("Layer Type", "Time (ms)", "% Total")]
    for place, (kind, ms, share) in enumerate(rows):
        cells.append((kind + (_MARK if place == 0 else ""), f"{ms:.2f}", f"{share:.1f}"))
    total = sum(ms for _, ms, _ in rows)
    cells.append(("Total", f"{total:.2f}", "100.0"))
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    lines = [
        f"| {row[0]:<{widths[0]}} | {row[1]:>{widths[1]}} | {row[2]:>{widths[2]}} |"
        for row in cells
    ]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
