"""Which checkpoints of a run stay: those of the last stages (`keep_last`), and the best within each (`keep_best`).

    a validation -> `ranked` -> RUN/best/NN-NAME-UPDATES, a checkpoint; a saved state -> `prune`

A folder is removed only after state.pt and run.json name it no more, and under another name first. So a run that is
killed at any moment names no checkpoint that is not there, and no name leads to half of one. Torch-free.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lrkit.files import remove, staging_path

BEST_FOLDER = "best"

_BEST_NAME = re.compile(r"\d{2,}-.+-\d{6,}")


def best_name(index: int, stage: str, update: int) -> str:
    """The folder of a checkpoint within a stage, below the run's."""
    return f"{BEST_FOLDER}/{index:02d}-{stage}-{update:06d}"


def ranked(entries: Sequence[Mapping[str, Any]], keep_best: int) -> list[dict[str, Any]]:
    """The best of a stage's validations, best first; of equal ones the earlier.

    Lengths of a stage weigh the same: what counts is the mean accuracy. Stages are not compared, as each asks for more
    than the one before.
    """
    return [dict(entry) for entry in sorted(entries, key=lambda one: (-one["accuracy"], one["updates"]))[:keep_best]]


def gone(finished: Sequence[Mapping[str, Any]], keep_last: int | None) -> list[str]:
    """Checkpoints of finished stages that do not stay."""
    return [] if keep_last is None else [str(stage["checkpoint"]) for stage in finished[:-keep_last]]


def prune(
    folder: Path, finished: Sequence[Mapping[str, Any]], best: Sequence[Mapping[str, Any]], keep_last: int | None
) -> None:
    """Removes what does not stay: of stages that are `finished`, and of the `best` of the one that runs. Where the disk
    refuses, it stays."""
    for name in gone(finished, keep_last):
        _take_away(folder / name)
    kept = finished if keep_last is None else finished[-keep_last:]
    named = {entry["checkpoint"] for entry in [*best, *(one for stage in kept for one in stage.get("best", ()))]}
    for place in sorted((folder / BEST_FOLDER).glob("[0-9]*")):
        if _BEST_NAME.fullmatch(place.name) and f"{BEST_FOLDER}/{place.name}" not in named:
            _take_away(place)
    with suppress(OSError):  # it is not empty, or not there
        (folder / BEST_FOLDER).rmdir()


def _take_away(place: Path) -> None:
    if not place.is_dir() or place.is_symlink():
        return
    with suppress(OSError):
        aside = staging_path(place)
        os.rename(place, aside)
        remove(aside)
