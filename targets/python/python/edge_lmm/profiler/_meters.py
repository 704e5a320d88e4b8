"""Clocks and memory of the devices that PyTorch computes on."""

from __future__ import annotations

import os
import time
from typing import Any, Protocol, Sequence


class Meter(Protocol):
    """Time and memory of a device."""

    def now(self) -> Any:
        """Marks a point in time."""

    def memory(self) -> tuple[int, int]:
        """Returns the bytes in use, and the most since the last call."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Returns the times of all marks, once the device has done its work."""


class CpuMeter:
    """The clock, and the resident memory of this process.

    PyTorch does not count its memory on CPUs. Resident memory is read at the boundaries of modules,
    in pages, and includes what the allocator keeps for later.
    """

    def __init__(self) -> None:
        self._page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
        try:
            self._statm: int | None = os.open("/proc/self/statm", os.O_RDONLY)
        except OSError:
            self._statm = None

    def now(self) -> float:
        return time.perf_counter()

    def memory(self) -> tuple[int, int]:
        if self._statm is None:
            return 0, 0
        resident = int(os.pread(self._statm, 128, 0).split()[1]) * self._page
        return resident, resident

    def seconds(self, marks: Sequence[float]) -> list[float]:
        return list(marks)

    def __del__(self) -> None:
        if self._statm is not None:
            os.close(self._statm)


class CudaMeter:
    """CUDA events and the memory of PyTorch's allocator."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch = torch
        self._device = device

    def now(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._torch.cuda.current_stream(self._device))
        return event

    def memory(self) -> tuple[int, int]:
        cuda = self._torch.cuda
        used, most = cuda.memory_allocated(self._device), cuda.max_memory_allocated(self._device)
        cuda.reset_peak_memory_stats(self._device)
        return used, most

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        if not marks:
            return []
        self._torch.cuda.synchronize(self._device)
        return [marks[0].elapsed_time(mark) / 1e3 for mark in marks]
