"""Killed trainings that go on are the run without a break, bit for bit: a few chosen moments, and many random ones."""

import os

import pytest

from tests.commands import killer

pytest.importorskip("sklearn")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the killer forks")

CHOSEN = {
    "before:run.json:2": "the state says that a stage is over, run.json does not",
    "before:01-say:1": "a checkpoint is written but has no name yet",
    "half:metrics.jsonl:6": "half a line",
}
"""Moment -> what a kill leaves then."""


@pytest.mark.long
def test_a_run_killed_between_two_writes_goes_on_as_if_nothing_had_happened() -> None:
    moments = [argument for moment in CHOSEN for argument in ("--at", moment)]
    assert killer("kill_training", *moments) == [f"{moment}: 1 kills, the same" for moment in CHOSEN]


@pytest.mark.long
def test_a_run_whose_disk_refuses_from_a_random_moment_on_says_so_and_goes_on() -> None:
    lines = killer("kill_training", "--faults", "6", "--seed", "1")
    assert lines[-1].startswith("6 faults in ") and lines[-1].endswith("the same")


@pytest.mark.slow
def test_a_run_killed_at_random_moments_goes_on_as_if_nothing_had_happened() -> None:
    lines = killer("kill_training", "--kills", "20", "--seed", "7")
    assert lines[-1].startswith("20 kills in ") and lines[-1].endswith("the same")
