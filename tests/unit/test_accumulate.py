"""`accumulate`: batches of one update are one batch that holds their samples. With several processes:
tests/stress/test_side_by_side.py.

Once every batch was divided by its own token weight, so that a word of a long answer weighed less than a word of a
short one; and a variable that launchers leave in the environment replaced the recipe's number.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lrkit.contract.settings import ReasonerSettings
from lrkit.data.trail import trail_set
from lrkit.data.trail_source import TrailData
from lrkit.errors import UserError
from lrkit.model.build import build_reasoner
from lrkit.resources import STATE_FILE
from lrkit.train.accelerator import make_accelerator
from lrkit.train.fresh import fresh_backbone, fresh_processor
from lrkit.train.metrics import read_metrics
from lrkit.train.recipe import FreshBackbone, load_recipe
from lrkit.train.run import train
from lrkit.train.stage import Readout
from lrkit.train.stop_signals import TrainingInterrupted
from lrkit.train.vision import VisionBatch, VisionObjective, collate_vision

pytest.importorskip("sklearn")

VARIABLE = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
STAGES: dict[str, dict[str, Any]] = {
    "chains of thought": {"latent_steps": 0},
    "latent steps, with distillation": {"latent_steps": "all"},
    "the first step latent": {"latent_steps": 1},
}
VISION = {"readouts": {"token_digits": {"classes": 10, "tied": True}, "token_rooms": {"classes": 12}}}


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chains of 0 to 4 steps with words in plenty or few, on pictures of two sizes or none."""
    folder = tmp_path_factory.mktemp("lines")
    for name, size in (("small", (48, 32)), ("wide", (128, 64))):
        Image.effect_noise(size, 90).convert("RGB").save(folder / f"{name}.png")
    rows = [
        {
            "id": str(number),
            "question": "Which room are you in?" + " Start in room 3" * (number % 3),
            "steps": ["Take 2 hops." * (1 + number % 4)] * (number % 5),
            "answer": str(number),
            **({"image": "wide.png" if number % 2 else "small.png"} if number % 3 else {}),
        }
        for number in range(8)
    ]
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "lines.jsonl"


def recipe(batch_size: int, accumulate: int, **stage: Any) -> dict[str, Any]:
    """Two updates on the same samples in the same order, however they are cut into batches."""
    return {
        "name": "accumulated",
        "init": "tiny/base",
        "trainable": "full",
        "model": {
            "think": {"max_latent_steps": 3},
            "replay": {"num_tokens": 3},
            "distill": {"weight": 0.7, "window": 2},
            "routing": {"depth": 1, "alpha": 3},
        },
        "optimizer": {"clip": 0.0, "warmup": 0, "betas": [0.9, 0.9]},
        "batch_size": batch_size,
        "accumulate": accumulate,
        "log_every": 1,
        "eval": {"samples": 0},
        "stages": [{"name": "only", "updates": 2, **stage}],
    }


def first_update(values: dict[str, Any], folder: Path) -> tuple[Tensor, dict[str, float]]:
    """The gradient of the first update, which is AdamW's first running mean, and what was logged of it."""
    asked = iter([False, True])
    with pytest.raises(TrainingInterrupted):
        train(load_recipe(values), folder, quiet=True, stop=lambda: next(asked))
    (adamw,) = torch.load(folder / STATE_FILE, weights_only=True)["optimizers"]
    gradient = torch.cat([weight["exp_avg"].flatten() for weight in adamw["state"].values()]) / (1 - 0.9)
    return gradient, read_metrics(folder)[0]


def close(got: Tensor, want: Tensor) -> None:
    """To 1e-5 of the gradient's norm: sums of float32 in another order."""
    assert float(want.norm()) > 1e-3
    assert float((got - want).norm() / want.norm()) < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_small_batches_of_unlike_samples_are_one_large_batch(stage: str, lines: Path, tmp_path: Path) -> None:
    data = {"data": {"kind": "jsonl", "train": str(lines)}}
    want, logged = first_update({**recipe(8, 1, **STAGES[stage]), **data}, tmp_path / "whole")
    got, figures = first_update({**recipe(2, 4, **STAGES[stage]), **data}, tmp_path / "parts")
    close(got, want)
    for name in ("loss", "speech", "distill", "token_accuracy"):
        assert figures[name] == pytest.approx(logged[name], rel=1e-5), name


def test_read_outs_of_small_batches_are_those_of_one_large_batch() -> None:
    """A token without a label is left out, and batches have other numbers of those."""
    processor = fresh_processor()
    samples = trail_set("main", "val", 4)
    names = tuple(VISION["readouts"])
    whole = collate_vision(processor, samples, names)
    whole.labels["token_rooms"][:23] = -1
    parts = [collate_vision(processor, [sample], names) for sample in samples]
    for number, part in enumerate(parts):
        count = len(part.labels["token_rooms"])
        part.labels["token_rooms"] = whole.labels["token_rooms"][number * count : (number + 1) * count]
    torch.manual_seed(0)
    backbone: Any = fresh_backbone(FreshBackbone(), processor)
    reasoner = build_reasoner(backbone, ReasonerSettings(), processor.latent_id, trainable="full")
    readouts = {"token_digits": Readout(classes=10, tied=True), "token_rooms": Readout(classes=12)}
    objective = VisionObjective(reasoner, processor, readouts, seed=0, words=TrailData().label_words)

    def gradient(batches: list[VisionBatch]) -> Tensor:
        objective.zero_grad()
        counts = torch.stack([objective.loss_counts(batch) for batch in batches]).mean(0)
        for batch in batches:
            (objective(batch, counts).total / len(batches)).backward()
        return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])

    close(gradient(parts), gradient([whole]))


def test_a_batch_without_weight_changes_nothing(lines: Path, tmp_path: Path) -> None:
    """Zero over zero once made every weight not a number."""
    values = recipe(8, 1, latent_steps=0)
    values = {**values, "data": {"kind": "jsonl", "train": str(lines)}, "token_weights": {".": 0.0, "^$": 0.0}}
    values["model"] = {"think": {"halting": "fixed"}}
    gradient, logged = first_update(values, tmp_path / "run")
    assert logged["loss"] == 0.0 and float(gradient.abs().max()) == 0.0


@pytest.mark.parametrize("variable", ["3", "auto"])
def test_the_environment_does_not_change_the_recipe(
    variable: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """accelerate's DeepSpeed launcher sets the variable, and job templates keep it."""
    values = {**recipe(2, 2, latent_steps=1), "data": {"kind": "jsonl", "train": str(lines)}}
    train(load_recipe(values), tmp_path / "plain", quiet=True)
    monkeypatch.setenv(VARIABLE, variable)
    train(load_recipe(values), tmp_path / "variable")
    assert f"{VARIABLE}={variable} is ignored" in " ".join(capsys.readouterr().err.split())
    plain, variables = read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "variable")
    assert [line["loss"] for line in plain] == [line["loss"] for line in variables]
    monkeypatch.setenv(VARIABLE, "2")
    train(load_recipe(values), tmp_path / "same")
    assert VARIABLE not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_an_engine_that_cannot_train_latents_is_refused(
    variable: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=rf"{name} is asked for \({variable}\).*; launch without it, and set shard="):
        make_accelerator(load_recipe(recipe(2, 2)))


def test_runs_of_two_precisions_fit_into_one_process() -> None:
    """accelerate keeps the first one's, and refused the second run with a traceback."""
    for precision in ("bfloat16", "float32", "bfloat16"):
        values = {**recipe(2, 2), "precision": precision}
        accelerator = make_accelerator(load_recipe(values))
        assert accelerator.mixed_precision == ("bf16" if precision == "bfloat16" else "no")
