"""Conversion, description and comparison of records."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any, Mapping, Sequence, Union

from ._commands import run, run_json

Path = Union[str, "os.PathLike[str]"]


def convert(
    source: Path,
    output: Path,
    *,
    mmproj: "Path | None" = None,
    adapters: "Sequence[Path] | Mapping[Path, float]" = (),
    text: str = "q4",
    vision: str = "q8",
    audio: str = "q8",
    head: "str | None" = None,
    method: "str | None" = None,
    calibration: "Sequence[Path]" = (),
    random_weights: "int | None" = None,
    target: "str | None" = None,
    force: bool = False,
) -> "dict[str, Any]":
    """Converts a checkpoint into a record, as `edge-lmm-convert` does.

    `source` is a Hugging Face folder, or a language model in GGUF format with its vision tower in
    `mmproj`. `adapters` are folders of LoRA adapters, which are merged in this order, or a mapping from
    folders to the factors of their updates. `text`, `vision`, `audio` and `head` are formats: `f32`, `f16`, `q8`, `q4`. `method` is the
    method of quantization; the default depends on the formats as on the command line. Returns the
    report with the format, size and error of every weight.

    Raises:
        Error: the checkpoint cannot be converted, or the record exists and `force` is not set.
    """
    options = {
        "mmproj": mmproj,
        "text-quant": text,
        "vision-quant": vision,
        "audio-quant": audio,
        "head-quant": head,
        "method": method,
        "random-weights": random_weights,
        "target": target,
    }
    arguments = [os.fspath(source), "--output", os.fspath(output)]
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name}", str(value)]
    weights = adapters if isinstance(adapters, Mapping) else dict.fromkeys(adapters, 1.0)
    for adapter, weight in weights.items():
        arguments += ["--adapter", f"{os.fspath(adapter)}={float(weight)!r}"]
    for samples in calibration:
        arguments += ["--calibration", os.fspath(samples)]
    if force:
        arguments.append("--force")
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        run("edge-lmm-convert", [*arguments, "--report", report])
        with open(report, encoding="utf-8") as file:
            return json.load(file)


def inspect(
    record: Path, *, context: int = 4096, verify: bool = False, target: "str | None" = None
) -> "dict[str, Any]":
    """Describes a record: family, parts, formats, sizes and memory. `verify` checks every weight,
    `target` that the record fits a device, such as `raspberry-pi-5`.

    Raises:
        Error: the record is damaged or does not fit.
    """
    arguments = ["inspect", os.fspath(record), "--json", "--context", str(context)]
    if verify:
        arguments.append("--verify")
    if target is not None:
        arguments += ["--target", target]
    return run_json("edge-lmm", arguments)


def compare(
    reference: Path,
    *candidates: Path,
    text: "Path | None" = None,
    ids: "Path | None" = None,
    manifest: "Path | None" = None,
    window: int = 512,
    windows: "int | None" = None,
    html: "Path | None" = None,
) -> "dict[str, Any]":
    """Compares records with a reference, as `edge-lmm-convert compare` does: perplexity and
    divergence on a `text` or on token `ids`, accuracy on the question set `manifest`, and size.
    `html` is a page with plots.

    Raises:
        Error: a record or file cannot be used.
    """
    options = {"text": text, "ids": ids, "manifest": manifest, "windows": windows, "html": html}
    records = [os.fspath(record) for record in (reference, *candidates)]
    arguments = ["compare", *records, "--json"]
    arguments += ["--window", str(window)]
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name}", str(value)]
    return run_json("edge-lmm-convert", arguments)
