"""Tests that fetch a package need pip's index; only where it answers nothing are they skipped."""

import subprocess
import sys
from pathlib import Path

import pytest

PROBE = "tabulate"
"""A small package."""


def need_index(folder: Path) -> None:
    """Skips the test where pip reaches no index; whatever fails behind it is a failure."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "1"]
    done = subprocess.run([*command, "--dest", str(folder), PROBE], capture_output=True, check=False, timeout=120)
    if done.returncode:
        pytest.skip("pip reaches no index here")
