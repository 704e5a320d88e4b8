"""The machine of a measurement, in the schema of `edge-lmm profile`."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

_CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def environment(program: dict[str, Any]) -> dict[str, Any]:
    """Describes this machine. `program` has what depends on PyTorch and the model."""
    frequency = _number(_CPU / "scaling_max_freq")
    return {
        "build": "release",
        "machine": _machine(),
        "architecture": {"AMD64": "x86_64", "arm64": "aarch64"}.get(
            platform.machine(), platform.machine()
        ),
        "os": _os(),
        "os_kernel": platform.release() or None,
        "memory_bytes": _memory("MemTotal"),
        "governor": _read(_CPU / "scaling_governor"),
        "highest_mhz": None if frequency is None else frequency // 1000,
        "record": None,
        **program,
    }


def state() -> dict[str, Any]:
    """Describes what changes during a measurement."""
    zones = []
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        temperature = _number(zone / "temp")
        if temperature is not None:
            zones.append((temperature / 1000.0, _read(zone / "type") or zone.name))
    celsius, zone_name = max(zones, default=(None, None))
    frequency = _number(_CPU / "scaling_cur_freq")
    return {
        "celsius": celsius,
        "zone": zone_name,
        "mhz": None if frequency is None else frequency // 1000,
        "throttling": None,
        "available_bytes": _memory("MemAvailable"),
    }


def peak_resident_bytes() -> int | None:
    """Returns the peak resident memory of this process."""
    for line in (_read(Path("/proc/self/status")) or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def threads() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text and text.lstrip("-").isdigit() else None


def _machine() -> str | None:
    board = _read(Path("/proc/device-tree/model"))
    if board:
        return board
    fields: dict[str, str] = {}
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields.get("model name") or fields.get("Model") or platform.processor() or None


def _os() -> str | None:
    for line in (_read(Path("/etc/os-release")) or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return f"{platform.system()} {platform.release()}".strip() or None


def _memory(name: str) -> int | None:
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
