"""Trains with several processes that meet by gloo, and holds what comes out against one process with the same recipe.

    python -m tests.stress.side_by_side curve:2 curve:4          losses and weights of the recipe `smoke`
    python -m tests.stress.side_by_side --updates 4 6 50 curve:2 killed:2:1:after:update:9
    python -m tests.stress.side_by_side --also shard=true -- curve:2 crossed:2:1:false

A check is `curve:PROCESSES`; `accumulate:PROCESSES` (the same samples in other batches); `damaged:PROCESSES` (a picture
that one of them cannot read); `killed:PROCESSES:RANK:MOMENT:THEN`: that process kills itself at the moment
(tests/stress/kill_training.py, or `at:update:N`), the others must end with one sentence, and THEN processes go on; or
`crossed:PROCESSES:THEN:SHARD`: all are killed, and THEN processes go on with `shard` as said.
Every process is forked from one that has imported torch and has not used it yet, and runs the command line.
"""

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

from lrkit.cli.main import main as command_line
from lrkit.data.trail import trail_set
from lrkit.train.loop import Trainer
from lrkit.train.metrics import read_metrics
from lrkit.train.run import train
from tests.stress.kill_training import die, kill_at

CLOSE = 1e-5
FIGURES = ("loss", "speech", "distill", "grad_norm", "token_accuracy", "accuracy_mean")
Inside = Callable[[int], None]
Ended = list[tuple[int, str]]
"""Of each process: exit code, or minus the signal, and what it said on standard error."""


def main() -> None:
    """The command line; exits with 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, nargs=3, default=(2, 2, 4), help="of the stages of smoke")
    parser.add_argument("--set", nargs="*", default=[], help="further values of the recipe")
    parser.add_argument("--also", nargs="*", default=[], help="values that the run held against does not have")
    parser.add_argument("checks", nargs="+")
    asked = parser.parse_args()
    assert callable(train) and trail_set("main", "train", 1)  # so that no child imports torch or what draws
    values = [f"stages.{stage}.updates={count}" for stage, count in enumerate(asked.updates)]
    recipe = ["smoke", "eval.show=0", "eval.samples=3", "save_every=2", *values, *asked.set]
    with tempfile.TemporaryDirectory() as made:
        whole = Path(made) / "whole"
        ends_well(side_by_side(recipe, whole, 1))
        for number, check in enumerate(asked.checks):
            kind, *rest = check.split(":")
            found = CHECKS[kind]([*recipe, *asked.also], whole, Path(made) / str(number), *rest)
            print(f"{check}: {found}", flush=True)


def curve(recipe: list[str], whole: Path, folder: Path, processes: str) -> str:
    """The same recipe with several processes."""
    ends_well(side_by_side(recipe, folder, int(processes)))
    return compared(whole, folder)


def accumulated(recipe: list[str], whole: Path, folder: Path, processes: str) -> str:
    """Batches of half the size, twice as many of them: without rehearsal, the samples of an update are the same."""
    plain = [*recipe, "stages.1.tasks={trail: 1.0}", "stages.2.rehearsal_fraction=0"]
    one, parts = folder / "one", folder / "parts"
    ends_well(side_by_side(plain, one, 1))
    ends_well(side_by_side([*plain, "batch_size=2", "accumulate=2"], parts, int(processes)))
    return compared(one, parts)


def killed(recipe: list[str], whole: Path, folder: Path, processes: str, rank: str, *rest: str) -> str:
    """A process dies, the others stop, and another number of processes goes on."""
    *moment, then = rest

    def inside(process: int) -> None:
        if process == int(rank):
            at_update(int(moment[2])) if moment[0] == "at" else kill_at(":".join(moment))

    ended = side_by_side(recipe, folder, int(processes), inside)
    for number, (code, said) in enumerate(ended):
        if number == int(rank):
            assert code == -signal.SIGKILL, f"the moment never came: {ended}"
            continue
        last = said.splitlines()[-1] if said else ""
        assert code == 2 and last.startswith("error: another process of this run has ended"), ended
        assert last.endswith("--resume goes on from the last saved update"), ended
        assert number == 0 or said.count("\n") == 1, ended
    ends_well(side_by_side(recipe, folder, int(then)))
    return compared(whole, folder)


def crossed(recipe: list[str], whole: Path, folder: Path, processes: str, then: str, shard: str) -> str:
    """All processes die in the last stage, and the state serves another number of them, and another kind."""
    ended = side_by_side(recipe, folder, int(processes), lambda process: at_update(7))
    assert all(code for code, _ in ended), ended
    ends_well(side_by_side([*recipe, f"shard={shard}"], folder, int(then)))
    return compared(whole, folder)


def damaged(recipe: list[str], whole: Path, folder: Path, processes: str) -> str:
    """Lines of a file, of which one has a picture that is damaged and later mended."""
    folder.mkdir()
    rows = [{"question": "?", "image": f"{n}.png", "steps": [f"Step {n}"], "answer": str(n)} for n in range(8)]
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(8):
        Image.effect_noise((56, 56), 20 + number).convert("RGB").save(folder / f"{number}.png")
    data = json.dumps({"kind": "jsonl", "train": str(folder / "lines.jsonl")})
    values = [
        "init=tiny/base",
        "optimizer.lr=1e-4",
        "batch_size=4",
        "eval.samples=0",
        "stages.0.updates=0",
        "stages.1.lengths=[1]",
    ]
    values += ["stages.1.tasks={}", "stages.2.lengths=[1]", "stages.2.length_weights=[1]", f"data={data}"]
    asked = [*recipe, *values, 'stages.0={"name": "none", "updates": 0}']
    ends_well(side_by_side(asked, folder / "whole", 1))
    sound = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(sound[: len(sound) // 2])
    ended = side_by_side(asked, folder / "run", int(processes))
    errors = [said for _, said in ended if "error: " in said]
    assert [code for code, _ in ended] == [2] * len(ended) and len(errors) == 1 and "5.png" in errors[0], ended
    (folder / "5.png").write_bytes(sound)
    ends_well(side_by_side(asked, folder / "run", int(processes)))
    return compared(folder / "whole", folder / "run")


CHECKS: dict[str, Callable[..., str]] = {
    "curve": curve,
    "accumulate": accumulated,
    "killed": killed,
    "crossed": crossed,
    "damaged": damaged,
}


def side_by_side(recipe: list[str], folder: Path, processes: int, inside: Inside = lambda process: None) -> Ended:
    """Trains, and waits for all processes."""
    folder.parent.mkdir(exist_ok=True)
    port = free_port()
    said = [folder.parent / f"{folder.name}-{process}.txt" for process in range(processes)]
    children = [_begin(recipe, folder, process, processes, port, said[process], inside) for process in range(processes)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [(code, file.read_text()) for code, file in zip(codes, said, strict=True)]


def free_port() -> int:
    """One that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _begin(recipe: list[str], folder: Path, process: int, processes: int, port: int, said: Path, inside: Inside) -> int:
    """The process id of a child that trains."""
    child = os.fork()
    if child:
        return child
    code: object = 1
    try:
        told_into = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told_into, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ["ACCELERATE_USE_CPU"] = "true"
        if processes > 1:
            os.environ |= {"RANK": str(process), "LOCAL_RANK": str(process), "WORLD_SIZE": str(processes)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        inside(process)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (pytest's may be another)
        command_line(["train", *recipe, "-o", str(folder), "--resume"])
    except SystemExit as left:
        code = 0 if left.code is None else left.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 1)


def at_update(number: int) -> None:
    """From here on this process kills itself in front of its n-th update."""
    left = number

    def dying(trainer: Trainer, now: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            die()
        update(trainer, now)

    update = Trainer._update
    setattr(Trainer, "_update", dying)  # noqa: B010


def ends_well(ended: Ended) -> None:
    """Every process has come to its end, and only the first has said something."""
    assert [code for code, _ in ended] == [0] * len(ended), ended
    assert not any(said for _, said in ended[1:]), ended


def compared(whole: Path, folder: Path) -> str:
    """The largest differences; ends the program where they are too large."""
    first, second = read_metrics(whole), read_metrics(folder)
    assert [(line["kind"], line["update"]) for line in first] == [(line["kind"], line["update"]) for line in second]
    pairs = [(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in FIGURES if name in a]
    figures = max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs)
    weights, worst = 0.0, ""
    for file in sorted(whole.rglob("*.safetensors")):
        ours, theirs = load_file(file), load_file(folder / file.relative_to(whole))
        weights, worst = max((weights, worst), *((float((ours[n] - theirs[n]).abs().max()), n) for n in ours))
    assert json.loads((folder / "run.json").read_text())["done"]
    text = f"log within {figures:.1e}, weights within {weights:.1e} ({worst})"
    if max(figures, weights) > CLOSE:
        raise SystemExit(f"{text}, where {CLOSE:.0e} is allowed")
    return text


if __name__ == "__main__":
    main()
