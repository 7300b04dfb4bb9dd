"""An interrupted and resumed run is the uninterrupted run: losses, validations and weights, bit for bit (CPU)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrkit.errors import CheckpointError, ConfigError
from lrkit.resources import STATE_FILE, find_recipe, resolve_checkpoint
from lrkit.train.recipe import Recipe, load_recipe
from lrkit.train.run import train
from lrkit.train.stop_signals import TrainingInterrupted
from tests.runs import curve

pytest.importorskip("sklearn")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """The uninterrupted run of the smoke recipe."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    train(load_recipe(find_recipe("smoke"), ["log_every=3"]), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def adapter(smoke, tmp_path_factory) -> Path:
    """The uninterrupted run of `lora`."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    train(lora(smoke), folder, quiet=True)
    return folder


def lora(smoke: Path) -> Recipe:
    """Dropout, rehearsal, a stage that trains nothing, accumulation, rates of their own, and an end that validation
    decides."""
    think = {"lengths": [1, 2], "latent_steps": "all", "rehearsal_fraction": 0.4}
    return load_recipe(
        {
            "name": "lora",
            "init": str(smoke),
            "trainable": "lora",
            "model": {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.3}},
            "optimizer": {
                "kind": "muon",
                "lr": 1e-2,
                "warmup": 2,
                "schedule": "linear",
                "rates": {"step_encodings": 20.0},
            },
            "batch_size": 3,
            "accumulate": 2,
            "save_every": 2,
            "log_every": 1,
            "eval": {"every": 2, "samples": 3, "max_new_tokens": 6},
            "stages": [
                {"name": "say", "lengths": [1, 2], "updates": 0},
                {"name": "one", **think, "updates": 3},
                {"name": "two", **think, "updates": 5, "until": {"accuracy": 1.0}},
            ],
        }
    )


class StopAt:
    """True at its n-th question, counted over all runs it is given to."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers
        self._asked = 0

    def __call__(self) -> bool:
        self._asked += 1
        return self._asked in self._numbers


def run_with_stops(recipe: Recipe, folder: Path, stop: StopAt) -> int:
    """Resumes until the run is finished; returns how often it was stopped."""
    stops = 0
    while True:
        # Whatever else the process has drawn in between must not matter.
        torch.manual_seed(1000 + stops)
        try:
            train(recipe, folder, resume=True, quiet=True, stop=stop)
            return stops
        except TrainingInterrupted as interrupted:
            assert "--resume" in str(interrupted)
            stops += 1


def assert_same_run(first: Path, second: Path) -> None:
    assert curve(first) == curve(second)
    one, other = resolve_checkpoint(first), resolve_checkpoint(second)
    for file in sorted(one.glob("*.safetensors")):
        weights, others = load_file(file), load_file(other / file.name)
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[name], others[name]) for name in weights), file.name


def test_full_training_resumes_bit_for_bit_through_every_kind_of_stage(smoke, tmp_path):
    recipe = load_recipe(find_recipe("smoke"), ["log_every=3"])
    stops = run_with_stops(recipe, tmp_path / "run", StopAt(1, 3, 6, 9, 12, 15, 18, 20))
    assert stops >= 6
    assert_same_run(smoke, tmp_path / "run")


def test_lora_training_resumes_bit_for_bit(smoke, adapter, tmp_path):
    stops = run_with_stops(lora(smoke), tmp_path / "run", StopAt(2, 5, 11, 13))
    assert stops >= 3
    assert_same_run(adapter, tmp_path / "run")


def test_a_killed_run_goes_on_from_its_last_save_with_each_update_once(smoke, adapter, tmp_path):
    """A kill loses what came after the last save; metrics.jsonl, which is ahead of the state, is cut back to it."""
    recipe, folder = lora(smoke), tmp_path / "killed"
    with pytest.raises(TrainingInterrupted):
        train(recipe, folder, quiet=True, stop=StopAt(4))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "update": 99, "loss": 0.0}\n{"kind": "tr')
    run_with_stops(recipe, folder, StopAt())
    assert_same_run(adapter, folder)


def test_a_finished_run_is_not_repeated(smoke):
    before = (smoke / "metrics.jsonl").read_bytes()
    again = train(load_recipe(find_recipe("smoke"), ["log_every=3"]), smoke, resume=True, quiet=True)
    assert again == smoke / "stages" / "02-think"
    assert (smoke / "metrics.jsonl").read_bytes() == before


def test_resuming_with_another_recipe_names_the_differences(smoke):
    changed = load_recipe(find_recipe("smoke"), ["log_every=3", "optimizer.lr=0.5", "stages.1.updates=9"])
    with pytest.raises(ConfigError) as caught:
        train(changed, smoke, resume=True, quiet=True)
    assert "optimizer.lr: was 0.001, is 0.5" in str(caught.value)
    assert "stages.1.updates: was 4, is 9" in str(caught.value)


def test_a_run_is_never_overwritten(smoke):
    with pytest.raises(ConfigError, match="holds a run already; add --resume"):
        train(load_recipe(find_recipe("smoke")), smoke, quiet=True)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"not empty \(it holds thesis\.tex\)"):
        train(load_recipe(find_recipe("smoke")), tmp_path, quiet=True)


def test_a_damaged_state_is_one_sentence(smoke, tmp_path):
    (tmp_path / STATE_FILE).write_bytes((smoke / STATE_FILE).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read; start the run again"):
        train(load_recipe(find_recipe("smoke"), ["log_every=3"]), tmp_path, resume=True, quiet=True)


def test_an_init_that_is_not_there_is_found_before_anything_is_written(tmp_path):
    recipe = load_recipe(find_recipe("trail-cot"), ["init=runs/nowhere"])
    with pytest.raises(CheckpointError, match="init: runs/nowhere"):
        train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_full_training_of_an_adapter_is_refused(adapter, tmp_path):
    recipe = load_recipe(
        {"name": "x", "init": str(adapter), "trainable": "full", "stages": [{"name": "say", "updates": 1}]}
    )
    with pytest.raises(CheckpointError, match="is an adapter, which trainable: full cannot train"):
        train(recipe, tmp_path / "run", quiet=True)


def test_an_adapter_of_another_rank_is_refused(smoke, adapter, tmp_path):
    values = lora(smoke).model_dump(mode="json", exclude_unset=True)
    other = load_recipe({**values, "init": str(adapter)}, ["model.lora.rank=8"])
    with pytest.raises(CheckpointError, match=r"rank 4, alpha 8\.0 and dropout 0\.3, model\.lora asks for 8"):
        train(other, tmp_path / "run", quiet=True)
