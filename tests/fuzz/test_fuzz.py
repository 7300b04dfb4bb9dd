"""2,000 seeded inputs of every kind in the default run; `make fuzz` runs 50,000."""

import os
import subprocess
import sys
from pathlib import Path

from tests.fuzz.run import schedule
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz.run", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


def test_no_input_ends_in_anything_but_an_answer_or_one_sentence(bundle: Path) -> None:
    done = fuzz("--cases", "2000", "--bundle", str(bundle))
    assert done.returncode == 0, f"repeat one by: python -m tests.fuzz.run ARGUMENTS\n{done.stdout}\n{done.stderr}"
    assert done.stdout.split()[0] == str(len(schedule(2000, None)))


def test_every_kind_has_its_share() -> None:
    drawn = [name for name, _ in schedule(2000, None)]
    assert set(drawn) == set(TARGETS) and len(TARGETS) >= 15
    assert min(drawn.count(name) for name in TARGETS) >= 20


def test_a_crash_a_hang_and_a_flood_are_failures_that_are_named() -> None:
    """The runner must see what a process does not survive, and go on behind it."""
    done = fuzz("--cases", "6", "--target", "self-test", "--seconds", "2", "--bundle", "none")
    assert done.returncode == 1
    for index, says in ((0, "ended the process with code -"), (1, "Timeout"), (2, "ZeroDivisionError"), (3, "Memory")):
        parts = done.stdout.split("--target ")
        (found,) = [part for part in parts if part.startswith(f"self-test --seed 0 --index {index}:")]
        assert says in found
    assert "4 failures" in done.stdout
