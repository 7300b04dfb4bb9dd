"""What a run leaves beside weights: the recipe as it was run, run.json, and the provenance inside each checkpoint."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from lrkit.contract.attention import packages_of
from lrkit.errors import CheckpointError
from lrkit.files import read_json, write_json, write_text
from lrkit.gpus import torch_can_use
from lrkit.provenance import collect
from lrkit.resources import RUN_FILE, resolve_checkpoint
from lrkit.train.recipe import Recipe, as_written
from lrkit.train.retention import gone
from lrkit.train.run_folder import RECIPE_FILE
from lrkit.train.training_state import Place


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """The recipe with its overrides, as `lrkit train` reads it back. Raises FileError where it cannot be written."""
    write_text(folder / RECIPE_FILE, yaml.safe_dump(as_written(recipe), sort_keys=False))


def write_run(folder: Path, recipe: Recipe, place: Place) -> None:
    """run.json: how far the run is, and which checkpoint is its last. Equal places give equal files.

    Raises:
        FileError: it cannot be written.
    """
    if not place.finished:
        return
    removed = gone(place.finished, recipe.keep_last)
    stages = [stage | ({"removed": True} if stage["checkpoint"] in removed else {}) for stage in place.finished]
    report = {
        "schema": 1,
        "recipe": recipe.name,
        "done": place.stage == len(recipe.stages),
        "checkpoint": place.finished[-1]["checkpoint"],
        "updates": place.total_updates,
        "attention": recipe.attention.model_dump(),
        "wall_time_sec": place.seconds,
        "stages": stages,
        "notes": place.notes,
    }
    write_json(folder / RUN_FILE, report)


def read_run(folder: Path) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        CheckpointError: it cannot be read.
    """
    return read_json(folder / RUN_FILE, CheckpointError)


def checkpoint_info(
    recipe: Recipe,
    folder: Path,
    finished: Mapping[str, Any],
    data_digest: str,
    wall_time_sec: float,
    place: Place,
    numbers: Mapping[str, str],
) -> dict[str, Any]:
    """What reasoner.json says beside the settings: stage, metrics, baselines, provenance with the number types of
    training (`number_types` of accelerator.py)."""
    stage = recipe.stages[place.stage]
    baselines = {
        mode: os.path.relpath(resolve_checkpoint(where).absolute(), folder.absolute())
        for mode, where in recipe.baselines.items()
    }
    device = torch.cuda.get_device_name() if torch_can_use() else "cpu"
    provenance = collect(
        recipe=as_written(recipe),
        data_sha256=data_digest,
        seed=recipe.seed,
        device=device,
        num_threads=torch.get_num_threads(),
        numbers=dict(numbers),
        attention={**recipe.attention.model_dump(), "packages": packages_of(recipe.attention)},
        wall_time_sec=wall_time_sec,
        total_updates=place.total_updates,
        notes=place.notes,
    )
    metrics = {"accuracy": finished["accuracy"], "latent_steps": finished["latent_steps"], "split": "validation"}
    return {
        "stage": {"index": place.stage, "name": stage.name, "mode": stage.mode, "updates": finished["updates"]},
        "baselines": baselines,
        "metrics": metrics,
        "provenance": provenance,
    }
