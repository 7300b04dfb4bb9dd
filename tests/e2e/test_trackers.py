"""Weights & Biases beside TensorBoard: offline, over a stop and a resume; and a sentence where it is not installed."""

import sys
from pathlib import Path

import pytest

from lrkit.errors import ConfigError, UserError
from lrkit.train.metrics import TENSORBOARD_FOLDER
from lrkit.train.recipe import load_recipe
from lrkit.train.run import train
from lrkit.train.stop_signals import TrainingInterrupted
from lrkit.train.trackers import open_trackers
from tests.commands import lrkit
from tests.runs import curve, two_stages

pytestmark = pytest.mark.usefixtures("one_thread")


def test_without_the_package_the_extra_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert lrkit("train", two_stages(tmp_path), "-o", tmp_path / "run", "trackers=[wandb]") == 2
    assert 'pip install "lrkit[wandb]"' in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trackers"):
        load_recipe(two_stages(tmp_path), ["trackers=[notebook]"])


def test_a_resumed_run_is_one_run_of_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe, folder = load_recipe(two_stages(tmp_path), ["trackers=[wandb]"]), tmp_path / "run"
    asked = iter([False, False, True])
    with pytest.raises(TrainingInterrupted):
        train(recipe, folder, quiet=True, stop=lambda: next(asked))
    train(recipe, folder, resume=True, quiet=True)
    parts = [path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")]
    assert len(parts) == 2 and len(set(parts)) == 1
    assert all(list(path.glob("*.wandb")) for path in (folder / "wandb").glob("offline-run-*"))
    assert [record["update"] for record in curve(folder) if record["kind"] == "train"] == [1, 2, 3, 4, 5]
    assert list((folder / TENSORBOARD_FOLDER).iterdir())


def test_a_tracker_that_cannot_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(
        UserError, match=r"trackers: wandb cannot start \(.*\); set WANDB_MODE=offline, log in"
    ) as caught:
        open_trackers(("wandb",), tmp_path, "a name that it refuses: #?%/", "id", {})
    assert "\n" not in str(caught.value)
