"""Profiles of PyTorch modules."""

from __future__ import annotations

import platform
import sys
import time
from typing import Any, Mapping

from . import _environment, _names, _report, _table
from ._meters import CpuMeter, CudaMeter, Meter
from ._recorder import Recorder

FORMAT = "edge-lmm profile"
VERSION = 1


class TorchProfile:
    """Measurements of a `torch.nn.Module`. PyTorch is used only if the program imported it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._torch = sys.modules.get("torch")
        self._recorder: Recorder | None = None
        self._runs: list[_report.Run] = []
        self._names = _names.names(path for path, _ in model.named_modules())
        self._environment: dict[str, Any] = {}
        self._started = 0.0
        self._resident: int | None = None

    def start(self) -> None:
        if not self._runs:
            self._environment = _environment.environment(self._program())
            self._environment["before"] = _environment.state()
        self._recorder = Recorder(self._model, self._meter())
        self._started = time.perf_counter()

    def stop(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        calls = recorder.finish()
        outside = time.perf_counter() - self._started
        if not calls:
            raise RuntimeError("no module of the model was called between start() and stop()")
        self._runs.append(_report.run(recorder.modules, self._names, calls, outside))
        self._environment["after"] = _environment.state()
        self._resident = _environment.peak_resident_bytes()

    def report(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        runs = self._runs
        return {
            "format": FORMAT,
            "version": VERSION,
            "environment": self._environment,
            "roofline": None,
            "energy_source": None,
            "load": [],
            "runs": [_report.profile_run(runs, parameters, self._resident)] if runs else [],
        }

    def layers(self) -> list[tuple[str, float, float]]:
        if not self._runs:
            return []
        costs = self._runs[-1].costs
        classes = {_names.full_name(*key): cost.class_name for key, cost in costs.items()}
        return _table.layers(_report.modules(self._runs), classes)

    def _device(self) -> Any:
        parameters = getattr(self._model, "parameters", None)
        first = next(iter(parameters()), None) if parameters else None
        return getattr(first, "device", None)

    def _meter(self) -> Meter:
        device = self._device()
        if self._torch is not None and getattr(device, "type", "cpu") == "cuda":
            return CudaMeter(self._torch, device)
        return CpuMeter()

    def _program(self) -> dict[str, Any]:
        torch, device = self._torch, self._device()
        if torch is None:
            program = {
                "program": "python",
                "version": platform.python_version(),
                "features": ["cpu"],
                "kernels": "python",
                "threads": _environment.threads(),
            }
        else:
            capability = getattr(getattr(torch.backends, "cpu", None), "get_cpu_capability", None)
            program = {
                "program": "torch",
                "version": str(torch.__version__),
                "features": ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"],
                "kernels": capability() if capability else "torch",
                "threads": torch.get_num_threads(),
            }
        name = "cpu" if device is None else str(device)
        full_name = name
        if torch is not None and name.startswith("cuda"):
            full_name = f"{name} {torch.cuda.get_device_name(device)}"
        return {**program, "device": name, "device_name": full_name}
