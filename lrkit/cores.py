"""Counts the cores that this process may use by its affinity, its cpuset and the quota of its container. Imports
nothing of lrkit.

Place in the pipeline: `usable_cores` is behind the default threads of ONNX Runtime and torch, `lrkit doctor`, the
profiles and the provenance of every artifact.

A container with a quota of a quarter core still sees every core of its host. Threads beyond the quota only spend it
sooner, and then the kernel stops all of them until the next period.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAX_BYTES = 1 << 20  # of one file of the kernel; mountinfo is the longest


@dataclass(frozen=True)
class Cores:
    """What the system gives this process."""

    visible: int
    """Cores that it may be scheduled on."""
    physical: int
    """Of those, without hyperthreads: what numeric work gains from."""
    quota: float | None
    """Cores' worth of time that its control group may use; None where there is no such limit."""

    @property
    def usable(self) -> int:
        """Threads that can run at once without being stopped by the quota; at least 1."""
        return self.visible if self.quota is None else max(1, min(self.visible, math.floor(self.quota)))

    @property
    def threads(self) -> int:
        """Threads for one operator of numeric work: a hyperthread adds waiting, not speed."""
        return min(self.usable, self.physical)


def usable_cores() -> int:
    """Cores that this process may keep busy: those of its affinity and cpuset, at most its container's quota, rounded
    down; at least 1."""
    return find_cores().usable


def find_cores(root: Path = Path("/")) -> Cores:
    """Asks the system; `root` is where its /proc and /sys are. Never raises: what cannot be read limits nothing."""
    numbers = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
    quotas: list[float] = []
    for folder, unified in _groups(root):
        quota = _quota_v2(folder) if unified else _quota_v1(folder)
        quotas += [] if quota is None else [quota]
        # The affinity holds the cpuset already, unless another process set it before the group was narrowed.
        allowed = _cpu_list(_read(folder / ("cpuset.cpus.effective" if unified else "cpuset.effective_cpus")))
        numbers = [number for number in numbers if number in allowed] or numbers
    siblings = {_read(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list") for number in numbers}
    known = "" not in siblings
    return Cores(len(numbers), len(siblings) if known else len(numbers), min(quotas, default=None))


def _groups(root: Path) -> Iterator[tuple[Path, bool]]:
    """Folders of the process's control groups and of those around them, and whether each is of version 2."""
    mounts = list(_mounts(root))
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for mounted_root, place, kind, controllers in mounts:
            unified = kind == "cgroup2"
            if (not names) != unified or (names and not set(names.split(",")) & controllers & {"cpu", "cpuset"}):
                continue
            # A container may see its own group as the root of the mount, and the host's path in /proc.
            inside = path.removeprefix(mounted_root) if mounted_root != "/" else path
            folder = root / place.lstrip("/")
            parts = [part for part in inside.split("/") if part not in ("", "..")]
            for depth in range(len(parts) + 1):
                yield folder.joinpath(*parts[:depth]), unified


def _mounts(root: Path) -> Iterator[tuple[str, str, str, set[str]]]:
    """(root within the hierarchy, where mounted, cgroup or cgroup2, controllers) of every mounted hierarchy."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if len(left) > 4 and right and right[0] in ("cgroup", "cgroup2"):
            yield left[3], left[4], right[0], set(right[-1].split(","))


def _quota_v1(folder: Path) -> float | None:
    quota, period = _number(_read(folder / "cpu.cfs_quota_us")), _number(_read(folder / "cpu.cfs_period_us"))
    return quota / period if quota and period and quota > 0 and period > 0 else None


def _quota_v2(folder: Path) -> float | None:
    quota, period = (*_read(folder / "cpu.max").split(), "", "")[:2]
    most, each = _number(quota), _number(period or "100000")
    return most / each if most and each and most > 0 and each > 0 else None


def _cpu_list(text: str) -> set[int]:
    """ "0-2,5" as numbers; nothing where it cannot be read."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        low, high = _number(first), _number(last or first)
        if low is None or high is None or not 0 <= low <= high < 1 << 20:
            return set()
        found |= set(range(low, high + 1))
    return found


def _number(text: str) -> int | None:
    try:
        return int(text) if len(text) < 20 else None
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_BYTES).decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return ""
