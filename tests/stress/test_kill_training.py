"""Killed trainings that go on are the run without a break, bit for bit: a few chosen moments, and many random ones."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("sklearn")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the killer forks")

CHOSEN = {
    "before:run.json:2": "the state says that a stage is over, run.json does not",
    "before:01-say:1": "a checkpoint is written but has no name yet",
    "half:metrics.jsonl:6": "half a line",
}
"""Moment -> what a kill leaves then."""


def kill(*arguments: str) -> list[str]:
    """The lines that the killer prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.stress.kill_training", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # sums in one order
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_run_killed_between_two_writes_goes_on_as_if_nothing_had_happened() -> None:
    moments = [argument for moment in CHOSEN for argument in ("--at", moment)]
    assert kill(*moments) == [f"{moment}: 1 kills, the same" for moment in CHOSEN]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_goes_on_as_if_nothing_had_happened() -> None:
    lines = kill("--kills", "25", "--seed", "7")
    assert lines and all(line.endswith("the same") for line in lines)
