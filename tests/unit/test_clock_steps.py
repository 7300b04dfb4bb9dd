"""A clock that is set back or forth while a model trains changes nothing but the times that are written down."""

import itertools
import time
from pathlib import Path

import pytest

from lrkit.train.metrics import TENSORBOARD_FOLDER, MetricsWriter
from lrkit.train.recipe import load_recipe
from lrkit.train.run import train
from tests.runs import curve, two_stages


def test_curves_of_a_resumed_run_are_read_in_order_where_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads files by name, which begins with a time: the older part of the curve came last, and stayed."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for now, first, purge in ((2_000_000_000, 1, None), (1_000_000_000, 3, 3), (1_000_000_000, 4, 4)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with MetricsWriter(tmp_path, 1 << 20, purge) as metrics:
            for update in range(first, first + 4):
                metrics.write("train", update, {"loss": float(first)})
    seen = accumulator.EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER)).Reload()
    points = [(event.step, event.value) for event in seen.Scalars("train/loss")]
    assert points == [(1, 1.0), (2, 1.0), (3, 3.0), (4, 4.0), (5, 4.0), (6, 4.0), (7, 4.0)]


@pytest.mark.usefixtures("one_thread")
def test_a_run_whose_clock_jumps_is_the_run_whose_clock_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(two_stages(tmp_path))
    train(recipe, tmp_path / "steady", quiet=True)
    jumps = itertools.cycle([0.0, 4e9, -1e6, 7.0])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    train(recipe, tmp_path / "jumping", quiet=True)
    assert curve(tmp_path / "jumping") == curve(tmp_path / "steady")
