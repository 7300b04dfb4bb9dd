"""What a run leaves beside weights: the recipe as it was run, run.json, and the story inside each checkpoint."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from lrkit.provenance import collect
from lrkit.resources import RUN_FILE, resolve_checkpoint
from lrkit.train.recipe import Recipe, as_written
from lrkit.train.state import Place

RECIPE_FILE = "recipe.yaml"


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """The recipe with its overrides, as `lrkit train` reads it back."""
    text = yaml.safe_dump(as_written(recipe), sort_keys=False)
    (folder / RECIPE_FILE).write_text(text, encoding="utf-8")


def write_run(folder: Path, recipe: Recipe, place: Place) -> None:
    """run.json: how far the run is, and which checkpoint is its last."""
    report = {
        "schema": 1,
        "recipe": recipe.name,
        "done": place.stage == len(recipe.stages),
        "checkpoint": place.finished[-1]["checkpoint"],
        "updates": place.total_updates,
        "wall_time_sec": place.seconds,
        "stages": place.finished,
    }
    writing = folder / f".{RUN_FILE}.writing"
    writing.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    writing.replace(folder / RUN_FILE)


def read_run(folder: Path) -> dict[str, Any]:
    """The content of run.json."""
    return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))


def checkpoint_info(
    recipe: Recipe, folder: Path, finished: Mapping[str, Any], data_digest: str, wall_time_sec: float, place: Place
) -> dict[str, Any]:
    """What reasoner.json says beside the settings: stage, metrics, baselines, provenance."""
    stage = recipe.stages[place.stage]
    baselines = {
        mode: os.path.relpath(resolve_checkpoint(where).absolute(), folder.absolute())
        for mode, where in recipe.baselines.items()
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    provenance = collect(
        recipe=as_written(recipe),
        data_sha256=data_digest,
        seed=recipe.seed,
        device=device,
        num_threads=torch.get_num_threads(),
        wall_time_sec=wall_time_sec,
        total_updates=place.total_updates,
    )
    metrics = {"accuracy": finished["accuracy"], "latent_steps": finished["latent_steps"], "split": "validation"}
    return {
        "stage": {"index": place.stage, "name": stage.name, "mode": stage.mode, "updates": finished["updates"]},
        "baselines": baselines,
        "metrics": metrics,
        "provenance": provenance,
    }
