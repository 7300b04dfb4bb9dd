"""A run whose state or folder somebody altered: refused in one sentence before anything is trained, or made good."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lrkit.errors import CheckpointError, FileError
from lrkit.resources import RUN_FILE, STATE_FILE, find_recipe
from lrkit.train.checks import find_problems
from lrkit.train.metrics import METRICS_FILE, TENSORBOARD_FOLDER, read_metrics
from lrkit.train.recipe import Recipe, as_written, load_recipe
from lrkit.train.run import train
from lrkit.train.run_folder import STAGES_FOLDER
from lrkit.train.stop_signals import TrainingInterrupted

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    budgets = [f"stages.{stage}.updates={count}" for stage, count in enumerate((0, 1, 2))]
    return load_recipe(
        find_recipe("smoke"), ["save_every=1", "eval.show=0", "eval.every=0", "eval.samples=0", *budgets]
    )


@pytest.fixture(scope="module")
def stopped(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its last stage, after the first update of that."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    asked = iter(range(100))
    with pytest.raises(TrainingInterrupted):
        train(recipe, folder, quiet=True, stop=lambda: next(asked) >= 2)
    return folder


@pytest.fixture
def own(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def alter(folder: Path, path: str, value: Any) -> None:
    """Puts `value` into the state at a dotted path."""
    content: Any = torch.load(folder / STATE_FILE, weights_only=True)
    *above, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    inside = content
    for name in above:
        inside = inside[name]
    inside[last] = value
    torch.save(content, folder / STATE_FILE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", "2"),
        ("recipe", None),
        ("place", {"stage": 1, "turn": 3}),
        ("place.stage", "2"),
        ("place.stage", 40),
        ("place.update", -1),
        ("place.seconds", float("nan")),
        ("place.metrics_bytes", -5),
        ("place.metrics_bytes", 3.5),
        ("place.finished", [{"name": "say"}]),
        ("place.notes", None),
        ("place.best", {}),
        ("place.best", [{"updates": 3, "accuracy": "high", "checkpoint": "best/00-say-000003"}]),
        ("weights", None),
        ("weights", {}),
        ("weights", {"a": [1.0]}),
        ("optimizers", {}),
        ("optimizers.0.param_groups", []),
        ("optimizers.0", None),
        ("meter", 3),
        ("processes", []),
        ("processes.0", None),
        ("processes.0.curriculum.rng", {}),
        ("processes.0.curriculum", {}),
        ("processes.0.random.python", None),
        ("processes.0.random.numpy", ["MT19937"]),
        ("processes.0.random.torch", torch.zeros(3)),
        ("origin.init", None),
    ],
)
def test_a_state_that_somebody_altered_is_one_sentence(recipe, own, path, value):
    # Six of these ended in a traceback, and a stage beyond the last one was taken for a finished run.
    alter(own, path, value)
    with pytest.raises(CheckpointError) as found:
        train(recipe, own, resume=True, quiet=True)
    said = str(found.value)
    assert "\n" not in said
    assert "new run" in said or "new folder" in said or "with the lrkit of that run" in said
    assert "--resume goes on" not in said, "it would only be refused again"


@pytest.mark.parametrize("change", [lambda w: w.flatten()[:1], lambda w: torch.zeros(()), lambda w: w.half()])
def test_a_weight_of_another_shape_or_type_is_never_spread_over_the_models(recipe, own, change: Callable[..., Any]):
    content = torch.load(own / STATE_FILE, weights_only=True)
    name = next(name for name in content["weights"] if name.endswith("layernorm.weight"))
    alter_to = {**content["weights"], name: change(content["weights"][name])}
    alter(own, "weights", alter_to)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        train(recipe, own, resume=True, quiet=True)


@pytest.mark.parametrize("name", [METRICS_FILE, RUN_FILE, "recipe.yaml", TENSORBOARD_FOLDER, STAGES_FOLDER, "02-think"])
def test_a_name_of_the_run_that_became_something_else_is_found_before_training(recipe, own, name):
    # The checkpoint of a stage found a file in its place only after the stage had been trained.
    place = own / STAGES_FOLDER / name if name == "02-think" else own / name
    if place.is_file():
        place.unlink()
        place.mkdir()
    else:
        shutil.rmtree(place, ignore_errors=True)
        place.write_text("something else")
    before = read_metrics(own) if name != METRICS_FILE else []
    with pytest.raises(FileError, match="move it away"):
        train(recipe, own, resume=True, quiet=True)
    assert name == METRICS_FILE or read_metrics(own) == before


def test_a_finished_run_whose_weights_are_gone_is_not_called_finished(recipe, own):
    checkpoint = train(recipe, own, resume=True, quiet=True)
    for weights in checkpoint.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(CheckpointError, match="not there or not whole; copy it back"):
        train(recipe, own, resume=True, quiet=True)


def test_a_run_goes_on_with_another_number_of_workers(own: Path, recipe: Recipe) -> None:
    """How batches are made ahead decides on nothing: neither the loop nor the check before a run asks for the same."""
    other = load_recipe(as_written(recipe), ["loader={workers: 0, cache_bytes: 100000}"])
    find_problems(other, own, resume=True)
    train(other, own, quiet=True, resume=True)
    lines = [record for record in read_metrics(own) if record["kind"] == "train"]
    assert [record["update"] for record in lines] == [1, 2, 3]
    assert all(record["tokens_per_second"] > 0 and 0 <= record["waiting_share"] <= 1 for record in lines)
