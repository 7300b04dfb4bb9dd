"""A run's folder: checks that it may be used, holds it, and removes what a killed run left in it. Torch-free.

    RUN/recipe.yaml  RUN/metrics.jsonl  RUN/tensorboard/  RUN/stages/NN-NAME/ (a checkpoint)  RUN/state.pt  RUN/run.json
    RUN/best/NN-NAME-UPDATES/ (with keep_best)  RUN/heartbeat.json (lrkit/train/heartbeat.py)

state.pt is the first file of a run and decides how far the run is. --resume repairs all others by it: it cuts metrics
back, writes recipe.yaml and run.json again, and removes half-written checkpoints.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrkit.errors import ConfigError, FileError, os_sentence
from lrkit.files import WRITING, check_writable, remove
from lrkit.folders import locked
from lrkit.resources import RUN_FILE, STATE_FILE
from lrkit.train.heartbeat import HEARTBEAT_FILE, refuse_alive
from lrkit.train.metrics import METRICS_FILE, TENSORBOARD_FOLDER
from lrkit.train.retention import BEST_FOLDER

RECIPE_FILE = "recipe.yaml"
STAGES_FOLDER = "stages"

_RUN_FILES = (RECIPE_FILE, METRICS_FILE, RUN_FILE, STAGES_FOLDER, BEST_FOLDER, HEARTBEAT_FILE)
_LOCK_FILE = ".lock"


def check_folder(folder: Path, resume: bool) -> bool:
    """Whether `folder` holds a run to go on with (True) or is free for a new one; nothing is written.

    Raises:
        ConfigError: it holds a run and `resume` is False, or something else than a run.
        FileError: it is no folder, nothing can be written into it, or a name of the run is a folder for a file.
    """
    names = _names_in(folder)
    if STATE_FILE in names:
        if not (folder / STATE_FILE).is_file():
            raise ConfigError(f"{folder / STATE_FILE} is no file, so it is no run's state; give another folder with -o")
        if resume:
            _check_kinds(folder)
            return True
        raise ConfigError(
            f"{folder} holds a run already; add --resume to go on with it, or give another folder with -o"
        )
    if of_run := [name for name in _RUN_FILES if name in names]:
        raise ConfigError(
            f"{folder} holds {of_run[0]} of a run but no {STATE_FILE}, without which a run cannot go on; put its "
            f"{STATE_FILE} back, or give another folder with -o"
        )
    if names:
        raise ConfigError(f"{folder} is not empty (it holds {names[0]}); give an empty or a new folder with -o")
    return False


def _check_kinds(folder: Path) -> None:
    """What a run writes on into is what it was: else it would train for hours until it wants to write there."""
    for name in (RECIPE_FILE, METRICS_FILE, RUN_FILE, HEARTBEAT_FILE, _LOCK_FILE):
        if (folder / name).is_dir():
            raise FileError(f"{folder / name} is a folder, where the run has a file; move it away")
    for name in (STAGES_FOLDER, BEST_FOLDER, TENSORBOARD_FOLDER):
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            raise FileError(f"{folder / name} is no folder, where the run has one; move it away")
    for stage in (folder / STAGES_FOLDER).glob("*"):
        if not stage.is_dir():
            raise FileError(f"{stage} is no folder, where the run has checkpoints; move it away")


@contextmanager
def held_folder(folder: Path) -> Generator[None]:
    """The folder of a run, made where it is not there and held by this process alone.

    What a killed process left half-written in it is removed. A folder that stays empty is removed at the end.

    Raises:
        UserError: another process trains in it.
        FileError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise FileError(os_sentence(error, folder)) from error
    try:
        with locked(folder, "trains in", inside=True) as certain:
            if not certain:
                refuse_alive(folder)
            _remove_half_written(folder)
            yield
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def _names_in(folder: Path) -> list[str]:
    """What the folder holds, without what is of no account; empty where the folder is not there yet.

    Raises:
        FileError: it is no folder, or nothing can be written into it.
    """
    check_writable(folder, folder=True)
    try:
        if not os.path.lexists(folder):
            return []
        if not folder.is_dir():
            raise FileError(f"{folder} is no folder, and a run needs one; give another path with -o")
        return sorted(path.name for path in folder.iterdir() if not _of_no_account(path.name))
    except OSError as error:
        raise FileError(os_sentence(error, folder)) from error


def _of_no_account(name: str) -> bool:
    return name == _LOCK_FILE or name.startswith(WRITING)


def _remove_half_written(folder: Path) -> None:
    """Under the lock nobody else writes here, so whatever is not complete was left by a process that is gone."""
    for place in (folder, folder / STAGES_FOLDER, folder / BEST_FOLDER):
        for pattern in (f"{WRITING}*", ".*.writing"):
            for left in place.glob(pattern):
                remove(left)
