"""Kills a tiny training over and over, resumes it, and holds it against a run without a break, bit for bit.

    python -m tests.stress.kill_training --kills 100 --seed 1       at random moments (tests/stress/moments.py)
    python -m tests.stress.kill_training --faults 40 --seed 1       a disk that refuses from a random moment on
    python -m tests.stress.kill_training --at before:run.json:1     at a chosen one, as often as given

A chosen moment is WHEN:NAME:N, at the n-th time that NAME takes its place (a file replaced, a folder renamed): before
it, or after it; or half:metrics.jsonl:N, in the middle of the n-th line. Every part of a run is a process of its own,
forked from one that has imported torch and has not used it yet.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lrkit import folders
from lrkit.data.trail import trail_set
from lrkit.errors import UserError
from lrkit.resources import STATE_FILE, find_recipe, resolve_checkpoint
from lrkit.train import metrics
from lrkit.train.recipe import Recipe, load_recipe
from lrkit.train.run import train
from lrkit.train.stop_signals import AGAIN, BY_HAND, TrainingInterrupted
from tests.runs import curve
from tests.stress.moments import Moment, a_fault, a_kill, watch

UPDATES = [f"stages.{stage}.updates={count}" for stage, count in enumerate((2, 3, 5))]
KEEP = ["save_every=2", "eval.show=0", "eval.every=2", "keep_last=2", "keep_best=1"]
DONE, FAILED, REFUSED = 0, 1, 2
KILLED = {-signal.SIGKILL, -signal.SIGXFSZ, AGAIN, BY_HAND}


def main() -> None:
    """The command line; exits with 1 where a run differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="kills at random moments, over as many runs as that takes")
    parser.add_argument("--faults", type=int, default=0, help="disks that refuse, each in the way of one run")
    parser.add_argument("--at", action="append", default=[], help="WHEN:NAME:N, each in a run of its own")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    trail_set("main", "train", 1)  # so that the children need not import what draws, each for itself
    recipe = load_recipe(find_recipe("smoke"), [*KEEP, *UPDATES])
    with tempfile.TemporaryDirectory() as made:
        whole = Path(made) / "whole"
        counted = Path(made) / "events"
        assert run(recipe, whole, counting=counted) == DONE, "the run without a break fails"
        events, size = int(counted.read_text()), (whole / STATE_FILE).stat().st_size
        for number, moment in enumerate(asked.at):
            folder = Path(made) / f"chosen-{number}"
            ended = run(recipe, folder, inside=lambda moment=moment: kill_at(moment))
            assert ended == -signal.SIGKILL, f"{moment} never came: {ended}"
            stands_for_its_last_checkpoint(folder)
            report(moment, 1, finish(recipe, folder), differences(whole, folder))
        generator = random.Random(asked.seed)
        for what, draw, wanted in (("kills", a_kill, asked.kills), ("faults", a_fault, asked.faults)):
            done = number = 0
            while done < wanted:
                folder, number = Path(made) / f"{what}-{number}", number + 1
                said: list[str] = []
                for _ in range(min(wanted - done, generator.randint(1, 8))):
                    moment = draw(generator, events, size)
                    if (ended := struck(recipe, folder, moment, what == "kills")) is not None:
                        said.append(f"{moment}: {ended}")
                done += len(said)
                print("\n".join(said), flush=True)
                report(f"random, run {number}", len(said), finish(recipe, folder), differences(whole, folder))
            if wanted:
                print(f"{done} {what} in {number} runs of {events} events: the same", flush=True)


def run(recipe: Recipe, folder: Path, inside: Callable[[], object] | None = None, counting: Path | None = None) -> int:
    """Trains in a child and waits for it; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = FAILED
    try:
        if inside is not None:
            inside()
        events = None if counting is None else watch(folder, None)
        train(recipe, folder, resume=True, quiet=True)
        if counting is not None and events is not None:
            counting.write_text(str(events.count))
        code = DONE
    except TrainingInterrupted as stop:
        code = stop.exit_code
    except KeyboardInterrupt:  # before the run listened
        code = BY_HAND
    except UserError as error:
        code = REFUSED if "\n" not in str(error) else FAILED
        if inside is None or code == FAILED:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def struck(recipe: Recipe, folder: Path, moment: Moment, kills: bool) -> int | None:
    """How a child ended to which the moment came; None where it was done before."""
    code = run(recipe, folder, inside=lambda: watch(folder, moment))
    assert code == DONE or code in (KILLED if kills else {REFUSED}), f"{moment}: a part of the run ended with {code}"
    stands_for_its_last_checkpoint(folder)
    return None if code == DONE else code


def finish(recipe: Recipe, folder: Path) -> int:
    """Resumes to the end, and once more, as a finished run is made good too."""
    return run(recipe, folder) or run(recipe, folder)


def stands_for_its_last_checkpoint(folder: Path) -> None:
    """The folder of a killed run is never taken for an earlier stage than the last that is whole."""
    whole = sorted((folder / "stages").glob("[0-9]*"))
    assert not whole or resolve_checkpoint(folder) == whole[-1], f"{folder} is not {whole[-1]}"
    for place in [*whole, *(folder / "best").glob("[0-9]*")]:
        assert (place / "reasoner.json").is_file(), f"{place} is half a checkpoint"
        for file in place.glob("*.safetensors"):
            with safe_open(file, "np") as tensors:
                assert all(tensors.get_tensor(name) is not None for name in tensors.keys())  # noqa: SIM118


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
