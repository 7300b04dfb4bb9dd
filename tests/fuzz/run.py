"""Runs seeded inputs of every kind against lrkit: `python -m tests.fuzz.run --cases 50000`.

What must hold for each: an answer or an `LrkitError` (for command lines an exit code of 0, 2, 130 or 141), within 20
seconds and 2 GB. Cases run in child processes, so that a hang, a crash or a flood of memory is a failure like any
other; each is told by (target, seed, index), and `--target T --seed S --index I` runs it alone.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

MOST_BYTES = 2 << 30
_TOO_MUCH_MEMORY = 75
ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="only this one; repeat")
    parser.add_argument("--index", type=int, help="only this case of --target, with its traceback")
    parser.add_argument("--seconds", type=float, default=20.0, help="longest time of a case")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--bundle", type=Path, help="a bundle of tests.bundles; without one it is made")
    parser.add_argument("--child", nargs=4, metavar=("WORKER", "SKIP", "STATUS", "WORK"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child is not None:
        _child(asked, *asked.child)
        return
    with tempfile.TemporaryDirectory(prefix="lrkit-fuzz-") as folder:
        work = Path(folder)
        if asked.bundle is None:
            from tests.bundles import write_bundle

            asked.bundle = write_bundle(work)
        if asked.index is not None:
            _alone(asked, work)
            return
        sys.exit(1 if _all(asked, work) else 0)


def schedule(cases: int, only: list[str] | None) -> list[tuple[str, int]]:
    """(target, index) of all cases, by the targets' weights."""
    from tests.fuzz.targets import TARGETS

    if only == ["self-test"]:
        return [("self-test", index) for index in range(cases)]
    chosen = {name: target.weight for name, target in TARGETS.items() if not only or name in only}
    total = sum(chosen.values())
    return [(name, index) for name, weight in chosen.items() for index in range(max(1, round(cases * weight / total)))]


def _all(asked: argparse.Namespace, work: Path) -> int:
    """Runs everything; returns the number of failures."""
    started = time.monotonic()
    running = {worker: _start(asked, work, worker, 0) for worker in range(asked.workers)}
    failures: list[str] = []
    count = 0
    while running:
        for worker, (process, status) in list(running.items()):
            code = process.wait()
            reported = [json.loads(line) for line in (work / f"failures-{worker}").read_text().splitlines()]
            (work / f"failures-{worker}").write_text("")
            failures += [line["failure"] for line in reported]
            number, target, index = status.read_text().split()[:3]
            del running[worker]
            if code == 0:
                count += int(number)
                continue
            if target == "none":
                raise SystemExit((work / f"log-{worker}").read_text(errors="replace")[-3000:])
            if code != _TOO_MUCH_MEMORY:
                log = (work / f"log-{worker}").read_text(errors="replace")[-1500:]
                failures.append(_named(target, asked.seed, int(index), f"ended the process with code {code}\n{log}"))
            running[worker] = _start(asked, work, worker, int(number) + 1)
    print("\n".join(failures))
    print(f"{count} cases, {len(failures)} failures, {time.monotonic() - started:.0f} s, seed {asked.seed}")
    return len(failures)


def _start(asked: argparse.Namespace, work: Path, worker: int, skip: int) -> tuple["subprocess.Popen[bytes]", Path]:
    status = work / f"status-{worker}"
    status.write_text(f"{skip} none 0 ")
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.run", "--cases", str(asked.cases)]
    command += ["--seed", str(asked.seed), "--workers", str(asked.workers), "--bundle", str(asked.bundle)]
    command += ["--seconds", str(asked.seconds)]
    for target in asked.target or []:
        command += ["--target", target]
    command += ["--child", str(worker), str(skip), str(status), str(work)]
    (work / f"failures-{worker}").touch()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    with (work / f"log-{worker}").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, cwd=ROOT), status


def _child(asked: argparse.Namespace, worker: str, skip: str, status: str, work: str) -> None:
    from tests.fuzz.targets import find

    place = Path(work) / f"cases-{worker}"
    place.mkdir(exist_ok=True)
    every = schedule(asked.cases, asked.target)
    mine = every[int(worker) :: asked.workers]
    at = os.open(status, os.O_WRONLY)
    prepared: set[str] = set()
    with (Path(work) / f"failures-{worker}").open("a") as told:
        for number, (name, index) in list(enumerate(mine))[int(skip) :]:
            target = find(name)
            if name not in prepared:
                prepared.add(name)
                target.prepare(place, asked.bundle)
                _bound_memory()
            os.pwrite(at, f"{number} {name} {index} ".encode().ljust(80), 0)
            faulthandler.dump_traceback_later(asked.seconds, exit=True)
            failure = run_case(name, asked.seed, index)
            faulthandler.cancel_dump_traceback_later()
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MOST_BYTES:
                failure = _named(name, asked.seed, index, "took more than 2 GB of memory")
            if failure is not None:
                print(json.dumps({"failure": failure}), file=told, flush=True)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MOST_BYTES:
                sys.exit(_TOO_MUCH_MEMORY)
    os.pwrite(at, f"{len(mine)} done 0 ".encode().ljust(80), 0)


def _bound_memory() -> None:
    """Three GB above what the process has now, so that a flood ends in a MemoryError and not on the whole machine."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (3 << 30), hard))


def _drawn_by(name: str, seed: int, index: int) -> random.Random:
    rng = random.Random(f"{name} {seed} {index}")
    rng.index = index  # pyright: ignore[reportAttributeAccessIssue]
    return rng


def run_case(name: str, seed: int, index: int) -> str | None:
    """What went wrong, None where nothing did."""
    from lrkit.errors import LrkitError
    from tests.fuzz.targets import find

    target = find(name)
    case = target.case(_drawn_by(name, seed, index))
    try:
        target.run(case)
    except LrkitError as error:
        said = str(error)
        if not said.strip() or len(said) > 20_000:
            return _named(name, seed, index, f"a message of {len(said)} characters: {said[:200]!r}")
    except BaseException:
        return _named(name, seed, index, f"{traceback.format_exc(limit=-6)}case: {ascii(case)[:400]}")
    return None


def _named(target: str, seed: int, index: int, what: str) -> str:
    return f"--target {target} --seed {seed} --index {index}: {what}\n"


def _alone(asked: argparse.Namespace, work: Path) -> None:
    from tests.fuzz.targets import find

    (name,) = asked.target
    find(name).prepare(work, asked.bundle)
    print(ascii(find(name).case(_drawn_by(name, asked.seed, asked.index)))[:4000])
    faulthandler.dump_traceback_later(asked.seconds, exit=True)
    print(run_case(name, asked.seed, asked.index) or "nothing went wrong")


if __name__ == "__main__":
    main()
