"""Time, memory and work of every module of a model.

```
profiler = ModelProfiler(model)
profiler.start()
model.generate(**inputs)
profiler.stop()
profiler.print_summary()
```

The model is an [edge_lmm.Engine] or any `torch.nn.Module`. Both kinds of reports have the schema of
`edge-lmm profile --json`, so that [compare] can tell what differs between PyTorch and this runtime.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Iterator, Protocol, Sequence, TextIO

from . import _table
from ._torch import TorchProfile

__all__ = ["ModelProfiler", "compare"]


class _Profile(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def report(self, parameters: dict[str, Any]) -> dict[str, Any]: ...
    def layers(self) -> list[tuple[str, float, float]]: ...


class ModelProfiler:
    """Profiles a model.

    Each pair of [start] and [stop] is a run. Runs of the same work are repeats: the report has their
    statistics, the table their medians.
    """

    def __init__(self, model: Any, *, prompt: str = "", media: Sequence[str] = ()) -> None:
        """`model` is an `edge_lmm.Engine` or a `torch.nn.Module`. `prompt` and `media` are written
        to the report of a PyTorch model, which does not see them; those of an engine are known.

        Raises:
            TypeError: the model is neither.
        """
        self._parameters = {"prompt": prompt, "media": [os.fspath(file) for file in media]}
        self._profile = _profile(model)
        self._running = False

    def start(self) -> None:
        """Starts a run.

        Raises:
            RuntimeError: a run has started already.
        """
        if self._running:
            raise RuntimeError("the profiler is running: call stop() first")
        self._profile.start()
        self._running = True

    def stop(self) -> None:
        """Ends the run.

        Raises:
            RuntimeError: no run has started, or the model did nothing.
        """
        if not self._running:
            raise RuntimeError("the profiler is not running: call start() first")
        self._running = False
        self._profile.stop()

    def __enter__(self) -> "ModelProfiler":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def report(self) -> dict[str, Any]:
        """Returns the report as `edge-lmm profile --json` prints it.

        Raises:
            RuntimeError: nothing was measured.
        """
        report = self._profile.report(self._parameters)
        if not report["runs"]:
            raise RuntimeError("nothing was measured: call start() and stop() around the model")
        return report

    def to_json(self, path: "str | os.PathLike[str] | None" = None) -> str:
        """Returns the report as JSON, and writes it to `path` if given."""
        text = json.dumps(self.report())
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text + "\n")
        return text

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields one flat row for each stage and module, for `pandas.DataFrame`."""
        for number, run in enumerate(self.report()["runs"]):
            for module in run["modules"]:
                times = {f"ms_{name}": value for name, value in module["ms"].items()}
                rest = {name: value for name, value in module.items() if name != "ms"}
                yield {"run": number, **rest, "ms": module["ms"]["median"], **times}

    def layers(self) -> list[tuple[str, float, float]]:
        """Returns the rows of the table: type of layer, milliseconds, percentage of the total."""
        self.report()
        return self._profile.layers()

    def summary(self) -> str:
        """Returns the table `Layer Type | Time (ms) | % Total`; the bottleneck is marked."""
        return _table.text(self.layers())

    def print_summary(self, file: TextIO | None = None) -> None:
        """Prints the table."""
        print(self.summary(), file=file or sys.stdout)


def _profile(model: Any) -> _Profile:
    own = getattr(model, "_profile", None)
    if own is not None:
        return own()
    if hasattr(model, "named_modules") and hasattr(model, "register_forward_pre_hook"):
        return TorchProfile(model)
    raise TypeError(
        f"cannot profile {type(model).__name__}: expected an edge_lmm.Engine or a torch.nn.Module"
    )


def compare(
    baseline: "str | os.PathLike[str]",
    *others: "str | os.PathLike[str]",
    html: "str | os.PathLike[str] | None" = None,
) -> dict[str, Any]:
    """Compares reports written by [ModelProfiler.to_json] or `edge-lmm profile --json`: what changed
    since the first one, and whether it is more than noise. `html` is a page with charts.

    Raises:
        edge_lmm.Error: a file is no such report.
    """
    from .._commands import run_json

    files = [os.fspath(file) for file in (baseline, *others)]
    page = [] if html is None else ["--html", os.fspath(html)]
    return run_json("edge-lmm", ["profile", *page, "--json", "--compare", *files])
