"""Where an artifact comes from: versions, commit, machine and time, written into every checkpoint, bundle and report.

Asks the installed packages for their versions without importing them.
"""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lrkit import __version__
from lrkit.cores import usable_cores

PACKAGES = (
    "numpy", "onnxruntime", "openvino", "tokenizers", "torch", "transformers", "peft", "accelerate", "onnx",
    "onnxscript",
)  # fmt: skip
"""Packages whose versions can change a result."""


def collect(**extra: Any) -> dict[str, Any]:
    """Provenance as plain JSON values; `extra` (recipe, seed, device, wall_time_sec, ...) is added as given.

    `git_commit` and `git_dirty` are null when lrkit does not run from a checkout; a package that is not installed
    has version null.
    """
    commit, dirty = git_state()
    return {
        "lrkit": __version__,
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "num_cpus": usable_cores(),
        "time_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **extra,
    }


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state(root: Path | None = None) -> tuple[str | None, bool | None]:
    """Commit and whether files differ from it, of the checkout that holds `root` (default: lrkit itself)."""
    root = root or Path(__file__).resolve().parent.parent
    # Only lrkit's own checkout counts: an environment may lie inside the repository of another project.
    if not (root / ".git").exists():
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain")
    if commit is None or changes is None:
        return None, None
    return commit, bool(changes)


def cpu_model() -> str | None:
    """The CPU's marketing name, or the processor family where the system does not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine() or None


def memory_bytes() -> int | None:
    """Physical memory of the machine, or None where the system does not tell it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
