"""After the fact: the same figures of a checkpoint, or of the checkpoints of a run's stages, on one set of samples.

    CHECKPOINT or RUN -> recipe and stage of each checkpoint -> samples -> analysis_set.py -> rows

Place in the pipeline: cli/analyze.py asks; analysis_files.py writes. Samples are drawn as the recipe of the checkpoint
draws its training samples, as during.py does, unless other data are named.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrkit.analyze.analysis_set import hops_of, measure
from lrkit.analyze.during import draw
from lrkit.analyze.rows import Row
from lrkit.checkpoints.checkpoint_folder import is_plain, read_info
from lrkit.contract.bundle.bundle_folder import is_bundle
from lrkit.contract.sample import Sample
from lrkit.data.collate import collate_training
from lrkit.data.sources import load_samples
from lrkit.errors import CheckpointError, ConfigError, UserError, clean, did_you_mean
from lrkit.model.checkpoint import load_checkpoint
from lrkit.resources import REASONER_FILE, resolve_checkpoint
from lrkit.runtime.encode.processor import Processor
from lrkit.train.curriculum import num_latents
from lrkit.train.recipe import Recipe, load_recipe
from lrkit.train.run_folder import STAGES_FOLDER
from lrkit.train.stage import Stage

Advance = Callable[[], None]


@dataclass(frozen=True)
class Subject:
    """A checkpoint to analyse."""

    folder: Path
    stage: Stage
    recipe: Recipe
    updates: int
    """Of the run up to it."""


def find_subjects(model: str, stage: str | None) -> list[Subject]:
    """The checkpoints that `model` stands for: those of a run's stages that reason, in order, or one.

    Raises:
        UserError: it is a bundle, has no latents, or has no such stage; as `resolve_checkpoint`.
    """
    if is_bundle(Path(model)):
        raise UserError(
            f"{clean(model)} is a bundle, and its programs have no gradients; give the checkpoint that it was made from"
        )
    stages = sorted(file.parent for file in Path(model).glob(f"{STAGES_FOLDER}/[0-9]*/{REASONER_FILE}"))
    folders = stages or [resolve_checkpoint(model)]
    subjects = [found for folder in folders if (found := _subject(folder, alone=not stages)) is not None]
    if not subjects:
        raise UserError(f"{clean(model)} has no stage that reasons; go on with the run, or give another one")
    if stage is None:
        return subjects
    names = [subject.stage.name for subject in subjects]
    if stage not in names:
        raise UserError(
            f"{clean(model)} has no checkpoint of a stage {stage!r}; it has {', '.join(names)}"
            f"{did_you_mean(stage, names)}"
        )
    return [subject for subject in subjects if subject.stage.name == stage]


def _subject(folder: Path, alone: bool) -> Subject | None:
    """None: a stage that trained the vision tower, which has nothing to analyse."""
    if is_plain(folder):
        raise CheckpointError(
            f"{folder} is a plain model without latents; give a checkpoint that `lrkit train` wrote from it"
        )
    info = read_info(folder)
    provenance, stage = info.get("provenance"), info.get("stage")
    try:
        values = provenance["recipe"]  # pyright: ignore
        recipe = load_recipe(values)
        found = next(one for one in recipe.stages if one.name == stage["name"])  # pyright: ignore
        updates = int(provenance["total_updates"])  # pyright: ignore
    except (ConfigError, LookupError, TypeError, ValueError, StopIteration) as error:
        raise CheckpointError(
            f"{folder} does not say which recipe and stage it comes from, so that its loss is not known; give a "
            "checkpoint as `lrkit train` wrote it"
        ) from error
    if found.objective == "vision":
        if alone:
            raise UserError(
                f"{folder} is of the stage {found.name}, which trained the vision tower alone, without latents; give "
                "one of a later stage"
            )
        return None
    return Subject(folder, found, recipe, updates)


def analyse(
    subjects: Sequence[Subject],
    samples: int,
    data: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    advance: Advance = lambda: None,
) -> list[Row]:
    """The rows of all subjects. `data` as in `lrkit eval --data`; None draws as the recipe of each does. `seed` None is
    the recipe's.

    Raises:
        UserError: data or a checkpoint cannot be read.
    """
    rows: list[Row] = []
    named = None if data is None else load_samples(data, samples, seed=seed or 0)
    if named is not None and len(named) < 2:
        raise UserError(f"{data} has {len(named)} samples, and an interval needs two; give more lines")
    for subject in subjects:
        drawn = named if named is not None else _drawn(subject, samples, seed)
        rows += _rows(subject, drawn, device)
        advance()
    return rows


def _drawn(subject: Subject, samples: int, seed: int | None) -> list[Sample]:
    recipe = subject.recipe if seed is None else subject.recipe.model_copy(update={"seed": seed})
    return draw(recipe.data.open(recipe.seed, recipe.stages), recipe, subject.stage, samples)


def _rows(subject: Subject, samples: Sequence[Sample], device: str | None) -> list[Row]:
    adapter = (subject.folder / "adapter_config.json").is_file()
    loaded = load_checkpoint(subject.folder, "lora" if adapter else "full", dtype=torch.float32)
    reasoner: Any = loaded.reasoner.to(device or "cpu")
    processor = Processor.from_folder(subject.folder).see_for(reasoner.settings.replay)
    stage, limit = subject.stage, reasoner.settings.think.max_latent_steps
    batches = [
        collate_training(
            processor,
            [sample],
            [num_latents(len(sample.steps), stage, limit)],
            stage.spoken_steps,
            subject.recipe.token_weights,
            max_latent_steps=limit if stage.latent_steps != 0 else None,
        ).to(device or "cpu")
        for sample in samples
    ]
    hops = [hops_of(sample) for sample in samples]
    return measure(reasoner, batches, hops, subject.updates, stage.name, nullcontext)
