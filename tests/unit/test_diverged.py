"""A run whose numbers are no numbers any more ends in one sentence, before they are saved, validated or kept."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrkit.errors import CheckpointError
from lrkit.resources import REASONER_FILE, resolve_checkpoint
from lrkit.train.failures import Diverged
from lrkit.train.recipe import load_recipe
from lrkit.train.run import train
from lrkit.train.training_state import STATE_FILE

pytest.importorskip("sklearn")

TOO_MUCH = 1e40
"""Beyond float32: the first update makes every weight infinite or NaN."""


def recipe(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "diverging",
        "init": "tiny/base",
        "trainable": "lora",
        "model": {"think": {"max_latent_steps": 1}, "replay": {"num_tokens": 1}, "lora": {"rank": 2, "dropout": 0.0}},
        "optimizer": {"lr": TOO_MUCH, "warmup": 0, "clip": 0.0},
        "batch_size": 1,
        "log_every": 100,
        "eval": {"samples": 0},
        "stages": [{"name": "only", "lengths": [1], "updates": 4}],
    }
    return {**values, **changes}


ONE_UPDATE = [{"name": "only", "lengths": [1], "updates": 1}]
CASES: dict[str, dict[str, Any]] = {
    "found in the loss": {"log_every": 2},
    "found before the state is saved": {"save_every": 1},
    "found before validation": {"eval": {"every": 1, "samples": 1, "max_new_tokens": 2}},
    "found in the last update, which no loss shows": {"stages": ONE_UPDATE, "log_every": 1},
    "in bfloat16": {"stages": ONE_UPDATE, "precision": "bfloat16"},
    "with all weights": {"stages": ONE_UPDATE, "trainable": "full", "model": {}},
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_that_are_none_end_the_run(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Diverged, match=r"of stage only became .* at update \d+; lower optimizer\.lr") as caught:
        train(load_recipe(recipe(**CASES[case])), folder, quiet=True)
    assert "\n" not in str(caught.value)
    assert not (folder / "stages").exists() or not list((folder / "stages").iterdir())
    # What was saved before, at the start of the run, is what it was.
    weights = torch.load(folder / STATE_FILE, weights_only=True)["weights"]
    assert weights and all(bool(weight.isfinite().all()) for weight in weights.values())


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_plain_model_that_holds_no_numbers_is_named_before_training(value: float, tmp_path: Path) -> None:
    # The run blamed the learning rate for it, after its first update.
    base = tmp_path / "base"
    shutil.copytree(resolve_checkpoint("tiny/base"), base)
    (base / REASONER_FILE).unlink()
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if name.endswith("mlp.down_proj.weight"))
    weights[name][3, 2] = value
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"down_proj\..*weight holds NaN or infinity; `lrkit validate` names"):
        train(load_recipe(recipe(init=str(base))), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
