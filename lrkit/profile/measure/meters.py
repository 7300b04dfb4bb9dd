"""Reads what the machine tells about itself while it works: memory, energy, load, governor, and the clock's own cost.

Place in the pipeline: rounds.py reads a meter around each answer; profile/report.py writes the machine's state down.
What cannot be read is None, never 0.
"""

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrkit.gpus import GpuMeter, find_gpus

_KIB = 1024


class MemoryMeter:
    """Resident memory of this process: its peak since `start`, and by how much that rose above where it started.

    Linux lets a process reset its own high-water mark; elsewhere only the peak since the process began is known.
    """

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc
        self._before: int | None = None
        self._can_reset = True

    def start(self) -> None:
        """Resets the peak."""
        try:
            (self._proc / "clear_refs").write_text("5")
        except OSError:
            self._can_reset = False
        self._before = self._status("VmRSS")

    def stop(self) -> tuple[int | None, int | None]:
        """(peak bytes, growth bytes)."""
        peak = self._status("VmHWM")
        if peak is None:
            # Kilobytes on Linux, bytes on macOS.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else _KIB)
        known = self._can_reset and self._before is not None
        return peak, max(0, peak - (self._before or 0)) if known else None

    def resident(self) -> int | None:
        """Bytes now."""
        return self._status("VmRSS")

    def _status(self, key: str) -> int | None:
        try:
            lines = (self._proc / "status").read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        found = [line for line in lines if line.startswith(f"{key}:")]
        return int(found[0].split()[1]) * _KIB if found else None


class EnergyMeter:
    """Joules of the CPU packages (RAPL) or of an NVIDIA GPU (NVML), where this user may read them.

    It counts all that runs on the package, not this process alone.
    """

    def __init__(self, device: str = "cpu", powercap: Path = Path("/sys/class/powercap")) -> None:
        self.source, self._read = _nvml(device) if device.startswith("cuda") else _rapl(powercap)
        self._before: float | None = None

    def start(self) -> None:
        """Notes the counter."""
        self._before = self._read()

    def stop(self) -> float | None:
        """Joules since `start`; None where nothing can be read or the counter wrapped around."""
        after = self._read()
        if after is None or self._before is None or after < self._before:
            return None
        return after - self._before


Reading = Callable[[], float | None]


def _rapl(folder: Path) -> tuple[str | None, Reading]:
    """Top-level packages only: `intel-rapl:0`, not its parts `intel-rapl:0:0`."""
    files = [zone / "energy_uj" for zone in sorted(folder.glob("*-rapl:*")) if zone.name.count(":") == 1]

    def read() -> float | None:
        try:
            return sum(int(file.read_text()) for file in files) / 1e6
        except (OSError, ValueError):
            return None

    return ("rapl", read) if files and read() is not None else (None, lambda: None)


def _nvml(device: str) -> tuple[str | None, Reading]:
    index, found = int(device.partition(":")[2] or 0), find_gpus().found
    gpu = GpuMeter(found[index].bus if index < len(found) else None)
    return ("nvml", gpu.joules) if gpu.joules() is not None else (None, lambda: None)


def clock_cost() -> float:
    """Seconds that one reading of the clock takes: median of many."""
    costs: list[float] = []
    for _ in range(25):
        started = time.perf_counter()
        for _ in range(200):
            time.perf_counter()
        costs.append((time.perf_counter() - started) / 201)
    return statistics.median(costs)


def machine_state() -> dict[str, Any]:
    """Load and frequency governor at this moment, for the report."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        name = governor.read_text(encoding="utf-8").strip()
    except OSError:
        name = None
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    return {"load_average": load, "governor": name}
