"""What `lrkit export` exports, a checkpoint or random:SHAPE, and the samples that it is checked on."""

from pathlib import Path
from typing import TYPE_CHECKING

from lrkit.errors import UserError
from lrkit.resources import random_shape

if TYPE_CHECKING:
    from lrkit.contract.sample import Sample
    from lrkit.export.subject import Subject
    from lrkit.export.targets.target import Target

MOST_SAMPLES = 100_000
"""Each is answered twice: more would take days."""


def check_samples(count: int | None, allow_unproven: bool) -> None:
    """Raises `UserError` for fewer than none, more than could ever be answered, or none where a proof is wanted."""
    if count == 0 and not allow_unproven:
        raise UserError("--samples is 0, so nothing would be compared with torch; give 1 or more, or --allow-unproven")
    if count is not None and not 0 <= count <= MOST_SAMPLES:
        raise UserError(f"--samples is {count}; give 1 to {MOST_SAMPLES:,}")


def open_subject(
    name: str, data: str | None, samples: int | None, target: "Target"
) -> "tuple[Subject, list[Sample], str]":
    """(what is exported, samples, name of a bundle).

    Raises:
        CheckpointError, DataError, UnknownNameError, ConfigError: no such checkpoint, data or shape.
    """
    if (shape := random_shape(name)) is not None:
        from lrkit.export.shape import ShapeSubject

        drawn = ShapeSubject(shape, target)
        return drawn, drawn.samples(1 if samples is None else samples), drawn.name
    from lrkit.data.sources import load_samples
    from lrkit.export.subject import CheckpointSubject
    from lrkit.resources import resolve_checkpoint

    folder = resolve_checkpoint(name)
    place = folder.name if Path(name).is_dir() else name.replace("/", "-")
    if samples == 0:
        return CheckpointSubject(folder), [], place
    return CheckpointSubject(folder), load_samples("trail:main" if data is None else data, samples or 500), place
