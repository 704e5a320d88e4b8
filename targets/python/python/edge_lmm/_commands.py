"""The commands `edge-lmm` and `edge-lmm-convert`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Sequence

from . import _native
from ._errors import Error

_FUNCTIONS = {"edge-lmm": "runtime", "edge-lmm-convert": "converter"}


def runtime() -> int:
    """Entry point of `edge-lmm`."""
    return _native.run_runtime(["edge-lmm", *sys.argv[1:]])


def converter() -> int:
    """Entry point of `edge-lmm-convert`."""
    return _native.run_converter(["edge-lmm-convert", *sys.argv[1:]])


def program(command: str) -> "list[str]":
    """Returns the program and arguments that start a command without its script."""
    code = f"import sys; from edge_lmm import _commands; sys.exit(_commands.{_FUNCTIONS[command]}())"
    return [sys.executable, "-c", code]


def run(command: str, arguments: Sequence[str]) -> str:
    """Runs a command in a process of its own, whose memory is free afterwards and which Ctrl-C ends
    without leaving files behind. Returns its standard output.

    Raises:
        Error: the command failed; the text is its error message.
    """
    line = [*program(command), *arguments]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return done.stdout
    lines = done.stderr.strip().splitlines() or [f"{command} ended with {done.returncode}"]
    errors = [line for line in lines if line.startswith("error: ")]
    raise Error((errors or lines)[-1].replace("error: ", "", 1))


def run_json(command: str, arguments: Sequence[str]) -> "dict[str, Any]":
    """Runs a command that prints one JSON object."""
    return json.loads(run(command, arguments))
