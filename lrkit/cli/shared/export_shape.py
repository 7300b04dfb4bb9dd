"""`lrkit export --shape NAME --random-weights`: what is exported, and the samples it is checked on."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrkit.errors import UserError

if TYPE_CHECKING:
    from lrkit.contract.sample import Sample
    from lrkit.export.subject import Subject
    from lrkit.export.targets.target import Target

ShapeName = Annotated[
    str | None, typer.Option("--shape", help="A name of `lrkit ls shape`, with random weights; no CHECKPOINT.")
]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Says that --shape has no others.")]
Data = Annotated[
    str | None, typer.Option(help="Samples to check on: trail:main, ..., or a .jsonl file. [default: trail:main]")
]
NumSamples = Annotated[int | None, typer.Option(help="How many of them. [default: 500; of a shape: 1]")]
MOST_SAMPLES = 100_000
"""Each is answered twice: more would take days."""


def name_and_changes(
    checkpoint: str | None, changes: list[str], shape: str | None, random_weights: bool, refused: Mapping[str, object]
) -> tuple[str, list[str]]:
    """(what to export, changes of the target). With --shape the first argument is a change too.

    Raises:
        UserError: nothing to export, or options that do not go together; `refused` go with no shape.
        UnknownNameError, ConfigError: no such shape.
    """
    if shape is None:
        if random_weights:
            raise UserError("--random-weights is for --shape; give the name of a shape, as in --shape qwen2-vl-2b")
        if not checkpoint:
            raise UserError("nothing to export was named; give a checkpoint, as in lrkit export tiny, or a --shape")
        return checkpoint, changes
    if not random_weights:
        raise UserError(f"--shape {shape} has no weights; add --random-weights to export it with random ones")
    given = [name for name, value in refused.items() if value]
    if checkpoint is not None and "=" not in checkpoint:
        given.append(checkpoint)
    if given:
        raise UserError(f"--shape is exported alone, checked on a picture of its own; leave {', '.join(given)} out")
    from lrkit.data.shapes import load_shape

    load_shape(shape)
    return shape, [*([checkpoint] if checkpoint else []), *changes]


def check_samples(count: int | None, allow_unproven: bool) -> None:
    """Raises `UserError` for fewer than none, more than could ever be answered, or none where a proof is wanted."""
    if count == 0 and not allow_unproven:
        raise UserError("--samples is 0, so nothing would be compared with torch; give 1 or more, or --allow-unproven")
    if count is not None and not 0 <= count <= MOST_SAMPLES:
        raise UserError(f"--samples is {count}; give 1 to {MOST_SAMPLES:,}")


def open_subject(
    name: str, shape: bool, data: str | None, samples: int | None, target: "Target"
) -> "tuple[Subject, list[Sample], str]":
    """(what is exported, samples, name of a bundle).

    Raises:
        CheckpointError, DataError, UnknownNameError, ConfigError: no such checkpoint, data or shape.
    """
    if shape:
        from lrkit.export.shape import ShapeSubject

        drawn = ShapeSubject(name, target)
        return drawn, drawn.samples(1 if samples is None else samples), drawn.name
    from lrkit.evaluate.benchmarks import load_samples
    from lrkit.export.subject import CheckpointSubject
    from lrkit.resources import resolve_checkpoint

    folder = resolve_checkpoint(name)
    place = folder.name if Path(name).is_dir() else name.replace("/", "-")
    if samples == 0:
        return CheckpointSubject(folder), [], place
    return CheckpointSubject(folder), load_samples("trail:main" if data is None else data, samples or 500), place
