"""How many cores may be used: quotas of control groups of both versions, from files as the kernel writes them."""

import os
from pathlib import Path

import pytest

from lrkit.cores import Cores, find_cores, usable_cores

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "34 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def machine(root: Path, mounts: str, group: str, **files: str) -> Cores:
    """What is found on a system with these files."""
    for name, content in {"proc/self/mountinfo": mounts, "proc/self/cgroup": group, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return find_cores(root)


def v2(root: Path, files: dict[str, str], group: str = "0::/app/job") -> Cores:
    return machine(root, V2, group, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()})


def v1(root: Path, files: dict[str, str], mounts: str = V1, group: str = "4:memory:/m\n3:cpuset:/c\n2:cpu,cpuacct:/q"):
    return machine(root, mounts, group, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()})


@pytest.mark.parametrize(
    ("limits", "usable", "quota"),
    [
        ({}, 8, None),
        ({"app/job/cpu.max": "max 100000"}, 8, None),
        ({"app/job/cpu.max": "25000 100000"}, 1, 0.25),
        ({"app/job/cpu.max": "250000 100000"}, 2, 2.5),
        ({"app/job/cpu.max": "3200000 100000"}, 8, 32),
        ({"app/job/cpu.max": "300000"}, 3, 3),
        ({"app/cpu.max": "150000 50000", "app/job/cpu.max": "500000 100000"}, 3, 3),
        ({"app/cpu.max": "max 100000", "app/job/cpu.max": "400000 100000"}, 4, 4),
        ({"app/job/cpu.max": "nonsense"}, 8, None),
        ({"app/job/cpu.max": ""}, 8, None),
        ({"app/job/cpu.max": "100000 0"}, 8, None),
        ({"app/job/cpu.max": "-1 100000"}, 8, None),
        ({"app/job/cpu.max": "9" * 5000}, 8, None),
        ({"app/job/cpuset.cpus.effective": "0-2,5"}, 4, None),
        ({"app/job/cpuset.cpus.effective": "7,x"}, 8, None),
        ({"app/job/cpuset.cpus.effective": "0-99999999999"}, 8, None),
    ],
)
def test_quota_of_version_2(tmp_path: Path, limits: dict[str, str], usable: int, quota: float | None) -> None:
    cores = v2(tmp_path, limits)
    assert (cores.usable, cores.quota) == (usable, quota)


@pytest.mark.parametrize(
    ("limits", "usable"),
    [
        ({}, 8),
        ({"cpu,cpuacct/q/cpu.cfs_quota_us": "-1", "cpu,cpuacct/q/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu,cpuacct/q/cpu.cfs_quota_us": "25000", "cpu,cpuacct/q/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "600000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 6),
        ({"cpu,cpuacct/q/cpu.cfs_quota_us": "600000"}, 8),
        ({"cpu,cpuacct/q/cpu.cfs_quota_us": "x", "cpu,cpuacct/q/cpu.cfs_period_us": "y"}, 8),
        ({"memory/m/cpu.cfs_quota_us": "1", "memory/m/cpu.cfs_period_us": "1"}, 8),
        ({"cpuset/c/cpuset.effective_cpus": "4-6"}, 3),
    ],
)
def test_quota_of_version_1(tmp_path: Path, limits: dict[str, str], usable: int) -> None:
    assert v1(tmp_path, limits).usable == usable


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    """Docker without a namespace of control groups: /proc names the host's path, the mount begins at the group."""
    mounts = "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu"
    limits = {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}
    assert v1(tmp_path, limits, mounts, "2:cpu:/docker/abc").usable == 2


def test_a_path_that_leads_up_is_not_followed(tmp_path: Path) -> None:
    assert v2(tmp_path, {"cpu.max": "200000 100000"}, "0::/../../x").usable == 2


def test_both_versions_at_once(tmp_path: Path) -> None:
    mounts = f"{V1}\n38 20 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    limits = {"cpu,cpuacct/q/cpu.cfs_quota_us": "300000", "cpu,cpuacct/q/cpu.cfs_period_us": "100000"}
    assert v1(tmp_path, limits, mounts, "2:cpu,cpuacct:/q\n0::/").usable == 3


def test_hyperthreads_add_no_threads(tmp_path: Path) -> None:
    file = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {file.format(number): f"{number % 4},{number % 4 + 4}" for number in range(8)}
    cores = machine(tmp_path, V2, "0::/", **siblings)
    assert (cores.usable, cores.physical, cores.threads) == (8, 4, 4)


@pytest.mark.parametrize("content", ["", "\x00\xff", "::::\n\n7", "0::", "a b c - cgroup2"])
def test_files_that_say_nothing(tmp_path: Path, content: str) -> None:
    assert machine(tmp_path, content, content).usable == 8
    assert find_cores(tmp_path / "nothing").usable == 8


def test_this_machine() -> None:
    assert 1 <= usable_cores() <= 8
