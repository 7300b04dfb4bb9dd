"""What `lrkit export` exports, a checkpoint or random:SHAPE, and the samples that it is checked on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lrkit.errors import UserError
from lrkit.resources import random_shape

if TYPE_CHECKING:
    from lrkit.contract.sample import Sample
    from lrkit.export.subject import Subject
    from lrkit.export.targets.target import Target

MODEL = "model."
"""Begins a change of the settings of random:SHAPE; the others change the target."""
SAMPLES = 500
"""Where nothing says how many."""
MOST_SAMPLES = 100_000
"""Each is answered twice: more would take days."""


def check_samples(model: str, count: int | None, allow_unproven: bool, max_loss: float | None = None) -> int | None:
    """How many samples to take; None where nothing says so.

    Raises:
        UserError: fewer than none, more than could ever be answered, or none where a proof is wanted; a bound that is
            none, or of random weights.
    """
    if count == 0 and not allow_unproven:
        raise UserError("--samples is 0, so nothing would be compared with torch; give 1 or more, or --allow-unproven")
    if count is not None and not 0 <= count <= MOST_SAMPLES:
        raise UserError(f"--samples is {count}; give 1 to {MOST_SAMPLES:,}")
    if max_loss is None:
        return count
    from lrkit.export.loss_bound import check_points, needed

    wanted = needed(check_points(max_loss))
    if random_shape(model) is not None:
        raise UserError(f"--max-loss is {max_loss:g}, and random weights have no right answers to lose; leave it out")
    if wanted > MOST_SAMPLES:
        raise UserError(
            f"--max-loss {max_loss:g} needs {wanted:,} samples to be seen, and at most {MOST_SAMPLES:,} are compared; "
            "allow a larger loss"
        )
    return max(SAMPLES, wanted) if count is None else count


def part_changes(name: str, changes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Changes of the target, and those of the settings of random:SHAPE, which begin with "model." and come without it.

    Raises:
        UserError: some for a model that has its settings.
    """
    own = [text.removeprefix(MODEL) for text in changes if text.startswith(MODEL)]
    if own and random_shape(name) is None:
        raise UserError(
            f"{MODEL}{own[0]} is for random:SHAPE, and {name} was trained with settings of its own; leave it out"
        )
    return [text for text in changes if not text.startswith(MODEL)], own


def open_subject(
    name: str, data: str | None, samples: int | None, target: "Target", settings: Sequence[str] = ()
) -> "tuple[Subject, list[Sample], str]":
    """(what is exported, samples, name of a bundle). `settings` are changes of those of a shape.

    Raises:
        CheckpointError, DataError, UnknownNameError, ConfigError: no such checkpoint, data, shape or setting.
    """
    if (shape := random_shape(name)) is not None:
        from lrkit.export.shape import ShapeSubject, shape_settings

        if target.int4.matrices:
            raise UserError(
                "int4.matrices says how some matrices are held otherwise, and those of random:SHAPE are held alike; "
                "leave it out"
            )
        drawn = ShapeSubject(shape, target, shape_settings(settings))
        return drawn, drawn.samples(1 if samples is None else samples), drawn.name
    from lrkit.data.sources import load_samples
    from lrkit.export.subject import CheckpointSubject
    from lrkit.resources import resolve_checkpoint

    folder = resolve_checkpoint(name)
    place = folder.name if Path(name).is_dir() else name.replace("/", "-")
    if samples == 0:
        return CheckpointSubject(folder), [], place
    return CheckpointSubject(folder), load_samples("trail:main" if data is None else data, samples or SAMPLES), place
