"""Imported when Python starts, by every process that has this folder in PYTHONPATH, workers of Ray among them: kills at
chosen and at seeded random moments, and takes torch away.

    AT_START_KILL    WHEN:NAME:TIMES, with commas: before or after NAME takes its place, TIMES over all processes
    AT_START_SEEDS   SEED:KILLS:EVENTS: so many processes die, each at an event that is drawn of so many
    AT_START_IN      the folder that events and names are of; every event is a file opened to write, or replaced
    AT_START_MARKS   an empty folder, where it is kept what has happened
    AT_START_NO      packages that cannot be imported, with commas
"""

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any


def happens_first(name: str) -> bool:
    """Whether nobody else has made this mark."""
    try:
        os.close(os.open(os.path.join(os.environ["AT_START_MARKS"], name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_names(moments: list[list[str]]) -> None:
    """Around `os.replace`, by which every file of lrkit takes its place."""
    real = os.replace

    def replace(source: Any, target: Any, **named: Any) -> None:
        path = Path(os.fspath(target))
        own = [(when, int(times)) for when, name, times in moments if name == path.name and IN in path.parents]
        for when, times in own:
            if when == "before" and any(happens_first(f"before-{path.name}-{nth}") for nth in range(times)):
                die()
        real(source, target, **named)
        for when, times in own:
            if when == "after" and any(happens_first(f"after-{path.name}-{nth}") for nth in range(times)):
                die()

    os.replace = replace  # pyright: ignore[reportAttributeAccessIssue]


def kill_at_random(seed: int, kills: int, events: int) -> None:
    """The n-th process that has an event dies at one that seed and n draw."""
    seen, at, own = 0, 0, None

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen, at, own
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event == "os.rename") or not isinstance(arguments[0], str | os.PathLike):
            return
        if IN not in Path(os.fspath(arguments[0])).parents:
            return
        if not seen:
            own = next((nth for nth in range(kills) if happens_first(f"process-{nth}")), None)
            at = 0 if own is None else random.Random(f"{seed} {own}").randint(1, events)
        seen += 1
        if seen == at and happens_first(f"died-{own}"):
            die()

    sys.addaudithook(heard)


IN = Path(os.environ.get("AT_START_IN", "/nowhere"))
for package in filter(None, os.environ.get("AT_START_NO", "").split(",")):
    sys.modules[package] = None  # pyright: ignore[reportArgumentType]
if given := os.environ.get("AT_START_KILL"):
    kill_at_names([moment.split(":") for moment in given.split(",")])
if given := os.environ.get("AT_START_SEEDS"):
    kill_at_random(*map(int, given.split(":")))
