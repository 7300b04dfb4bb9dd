"""How tests call the command line: in this process, and the programs that kill it in one of their own."""

import os
import subprocess
import sys

import pytest

from lrkit.cli.main import main


def lrkit(*arguments: object) -> int:
    """The exit code of `lrkit` with those words."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code if isinstance(left.value.code, int) else 0


def killer(name: str, *arguments: str) -> list[str]:
    """The lines that tests/stress/NAME.py prints; it must find nothing wrong."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.stress.{name}", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # sums in one order
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()
