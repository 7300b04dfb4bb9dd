"""Kills a tiny training over and over, resumes it, and holds it against a run without a break, bit for bit.

    python -m tests.stress.kill_training --kills 100 --seed 1       at random moments, by SIGKILL, SIGINT and SIGTERM
    python -m tests.stress.kill_training --at before:run.json:1     at a chosen one, as often as given

A moment is WHEN:NAME:N, at the n-th time that NAME takes its place (a file replaced, a folder renamed): before it, or
after it; or half:metrics.jsonl:N, in the middle of the n-th line. Every part of a run is a process of its own, forked
from one that has imported torch and has not used it yet.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrkit import folders
from lrkit.data.trail import trail_set
from lrkit.resources import find_recipe, resolve_checkpoint
from lrkit.train import metrics
from lrkit.train.recipe import Recipe, load_recipe
from lrkit.train.run import train
from lrkit.train.stop_signals import TrainingInterrupted
from tests.runs import curve

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
UPDATES = [f"stages.{stage}.updates={count}" for stage, count in enumerate((2, 3, 5))]
DONE, STOPPED, FAILED = 0, 130, 1


def main() -> None:
    """The command line; exits with 1 where a run differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="kills at random moments, over as many runs as that takes")
    parser.add_argument("--at", action="append", default=[], help="WHEN:NAME:N, each in a run of its own")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    trail_set("main", "train", 1)  # so that the children need not import what draws, each for itself
    recipe = load_recipe(find_recipe("smoke"), ["save_every=2", "eval.show=0", *UPDATES])
    with tempfile.TemporaryDirectory() as made:
        whole = Path(made) / "whole"
        began = time.monotonic()
        assert run(recipe, whole) == DONE, "the run without a break fails"
        seconds = time.monotonic() - began
        for number, moment in enumerate(asked.at):
            folder = Path(made) / f"chosen-{number}"
            ended = run(recipe, folder, inside=lambda moment=moment: kill_at(moment))
            assert ended == -signal.SIGKILL, f"{moment} never came: {ended}"
            stands_for_its_last_checkpoint(folder)
            report(moment, 1, finish(recipe, folder), differences(whole, folder))
        generator, left, number = random.Random(asked.seed), asked.kills, 0
        while left:
            folder, number = Path(made) / f"random-{number}", number + 1
            kills = min(left, generator.randint(1, 8))
            done = sum(kill_after(recipe, folder, generator, seconds) for _ in range(kills))
            report(f"random, run {number}", done, finish(recipe, folder), differences(whole, folder))
            left -= max(1, done)


def run(recipe: Recipe, folder: Path, inside: Callable[[], None] | None = None) -> int:
    """Trains in a child and waits for it; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(begin(recipe, folder, inside), 0)[1])


def begin(recipe: Recipe, folder: Path, inside: Callable[[], None] | None = None) -> int:
    """The process id of a child that trains, after `inside`."""
    child = os.fork()
    if child:
        return child
    code = FAILED
    try:
        if inside is not None:
            inside()
        train(recipe, folder, resume=True, quiet=True)
        code = DONE
    except TrainingInterrupted:
        code = STOPPED
    except KeyboardInterrupt:  # before the run listened
        code = STOPPED
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def kill_after(recipe: Recipe, folder: Path, generator: random.Random, seconds: float) -> bool:
    """Ends a child at a random moment; whether it was still running."""
    child = begin(recipe, folder)
    time.sleep(generator.uniform(0, seconds))
    os.kill(child, generator.choice(SIGNALS))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (DONE, STOPPED, -signal.SIGKILL, -signal.SIGTERM), f"a part of the run failed: {code}"
    return code != DONE


def finish(recipe: Recipe, folder: Path) -> int:
    """Resumes to the end, and once more, as a finished run is made good too."""
    return run(recipe, folder) or run(recipe, folder)


def stands_for_its_last_checkpoint(folder: Path) -> None:
    """The folder of a killed run is never taken for an earlier stage than the last that is whole."""
    whole = sorted((folder / "stages").glob("[0-9]*"))
    assert not whole or resolve_checkpoint(folder) == whole[-1], f"{folder} is not {whole[-1]}"


def kill_at(moment: str) -> None:
    """From here on this process kills itself at the moment."""
    when, name, count = moment.split(":")
    left = int(count)

    def passes(target: Any) -> bool:
        nonlocal left
        left -= Path(os.fspath(target)).name == name
        return left == 0 and Path(os.fspath(target)).name == name

    def around(place: Callable[..., Any]) -> Callable[..., Any]:
        def placed(source: Any, target: Any, *rest: Any) -> Any:
            dies = passes(target)
            if dies and when == "before":
                die()
            result = place(source, target, *rest)
            if dies:
                die()
            return result

        return placed

    def half(appender: Any, piece: bytes) -> None:
        if passes(appender._path):
            os.write(appender._file.fileno(), piece[: len(piece) // 2])
            die()
        append(appender, piece)

    append = metrics._Appender.append
    if when == "half":
        setattr(metrics._Appender, "append", half)  # noqa: B010
    for module, function in ((os, "replace"), (os, "rename"), (folders, "_exchange")):
        setattr(module, function, around(getattr(module, function)))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def differences(whole: Path, folder: Path) -> list[str]:
    """In what the two runs differ, and what was left over."""
    found = [f"left over: {path.relative_to(folder)}" for path in folder.rglob(".*")]
    if curve(whole) != curve(folder):
        found.append("metrics.jsonl differs")
    names = {path.relative_to(whole) for path in whole.rglob("*.safetensors")}
    if names != {path.relative_to(folder) for path in folder.rglob("*.safetensors")}:
        return [*found, "there are other checkpoints"]
    found += [
        f"{name} differs" for name in sorted(names) if (whole / name).read_bytes() != (folder / name).read_bytes()
    ]
    reports = [json.loads((place / "run.json").read_text()) | {"wall_time_sec": 0} for place in (whole, folder)]
    return found + ([] if reports[0] == reports[1] else ["run.json differs"])


def report(what: str, kills: int, code: int, differing: list[str]) -> None:
    """One line; ends the program where something is wrong."""
    print(f"{what}: {kills} kills, {'the same' if not differing else ', '.join(differing)}", flush=True)
    if code or differing:
        raise SystemExit(f"{what}: exit code {code} at the end")


if __name__ == "__main__":
    main()
