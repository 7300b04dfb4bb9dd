"""`accumulate`: batches of one update, and of all processes, are one batch that holds their samples.

Once every batch was divided by its own token weight, so that a word of a long answer weighed less than a word of a
short one; and a variable that launchers leave in the environment replaced the recipe's number.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.optim import Optimizer

from lrkit.contract.settings import ReasonerSettings
from lrkit.data.trail import trail_set
from lrkit.data.trail_source import TrailData
from lrkit.model.build import build_reasoner
from lrkit.resources import STATE_FILE
from lrkit.train.accelerator import make_accelerator
from lrkit.train.curriculum import Curriculum
from lrkit.train.fresh import fresh_backbone, fresh_processor
from lrkit.train.metrics import read_metrics
from lrkit.train.optim import build_optimizers
from lrkit.train.recipe import FreshBackbone, load_recipe
from lrkit.train.run import train
from lrkit.train.stage import Readout
from lrkit.train.start import load_start
from lrkit.train.stop_signals import TrainingInterrupted
from lrkit.train.vision import VisionBatch, VisionObjective, collate_vision

pytest.importorskip("sklearn")

VARIABLE = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
RANKS = 2
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


def test_runs_of_two_precisions_fit_into_one_process() -> None:
    """accelerate keeps the first one's, and refused the second run with a traceback."""
    for precision in ("bfloat16", "float32", "bfloat16"):
        values = {**recipe(2, 2), "precision": precision}
        accelerator = make_accelerator(load_recipe(values))
        assert accelerator.mixed_precision == ("bf16" if precision == "bfloat16" else "no")


@pytest.mark.slow
def test_processes_are_one_large_batch(lines: Path, tmp_path: Path) -> None:
    """Two processes of two batches each, whose gradients DistributedDataParallel averages."""
    values = {
        **recipe(2, 2, latent_steps="all"),
        "data": {"kind": "jsonl", "train": str(lines)},
        "save_every": 1,
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = "import sys; from tests.unit.test_accumulate import one_process; one_process(*sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", program, str(file), str(tmp_path)]
    ranks = [
        subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(RANKS),
                "LOCAL_WORLD_SIZE": str(RANKS),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "ACCELERATE_USE_CPU": "true",
            },
        )
        for rank in range(RANKS)
    ]
    for process in ranks:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
    got = torch.load(tmp_path / "gradient.pt")
    asked = load_recipe(values)
    torch.manual_seed(asked.seed)
    start = load_start(asked, asked.model, torch.float32)
    source, think = asked.data.open(asked.seed, asked.stages), start.reasoner.settings.think
    drawn = [
        Curriculum(asked, asked.data.open(asked.seed, asked.stages), start.processor, think, rank)
        for rank in range(RANKS)
    ]
    samples = [sample for one in drawn for _ in range(2) for sample in one.draw(0).samples]
    union = Curriculum(asked, source, start.processor, think).collate(asked.stages[0], samples)
    start.reasoner.train()
    start.reasoner(union).total.backward()
    close(got, gradient_of(build_optimizers(start.reasoner.named_parameters(), asked.optimizer)))


def one_process(recipe_file: str, folder: str) -> None:
    """A process of `test_processes_are_one_large_batch`: one update, whose gradient it leaves in the folder."""

    def keep(optimizer: Optimizer, *_: object) -> None:
        if os.environ["RANK"] == "0":
            torch.save(gradient_of([optimizer]), Path(folder) / "gradient.pt")
        os._exit(0)

    setattr(torch.optim.AdamW, "step", keep)  # noqa: B010
    train(load_recipe(Path(recipe_file)), Path(folder) / "run", quiet=True)


def gradient_of(optimizers: list[Optimizer]) -> Tensor:
    """Of all weights, 0 where none arrived."""
    weights = [weight for one in optimizers for group in one.param_groups for weight in group["params"]]
    return torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in weights])
