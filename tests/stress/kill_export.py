"""Kills `lrkit export` over and over: into a new folder, over an old bundle (--force), and while engines join a bundle.

    python -m tests.stress.kill_export --kills 60 --seed 1          at random moments, by SIGKILL, SIGINT and SIGTERM
    python -m tests.stress.kill_export --at force:before:bundle:1   at a chosen one, as often as given

A moment is WORK:WHEN:NAME:N, before or after NAME takes its place for the n-th time (a file replaced, a folder renamed
or exchanged). After each kill the folder is absent, or the old bundle, or the new one, and answers as it was recorded;
then the same work is done once more without a kill, and leaves nothing but the bundle. Every work is a process of its
own, forked from one that has imported torch.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from lrkit import folders
from lrkit.cli.main import INTERRUPTED
from lrkit.cli.main import main as lrkit
from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.settings import ReasonerSettings
from lrkit.model.build import build_reasoner
from lrkit.model.checkpoint import save_checkpoint
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.engines.tensorrt.library import installed_version
from tests.bundles import CAPACITY, processor
from tests.tiny import LATENT, tiny_backbone

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
LIMITS = [f"limits.{name}={value}" for name, value in CAPACITY.items() if name != "max_new_tokens"]
OLD, NEW = 5, 6
"""limits.max_new_tokens of the bundle that was there before, and of the one that is written."""


class Lab:
    """A folder with a checkpoint, an old bundle and an engine that was built elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint, self.old, self.device = folder / "latent", folder / "old", folder / "device"
        settings = ReasonerSettings.model_validate({"think": {"max_latent_steps": 1}, "replay": {"num_tokens": 0}})
        reasoner = build_reasoner(tiny_backbone(layers=1), settings, LATENT, trainable="none")
        save_checkpoint(self.checkpoint, reasoner, processor(), base=None, info={"stage": "latent"})
        # In this process, so that its children need not compile all that traces a vision tower again.
        assert code_of(lambda: self.export(self.old, OLD)) == 0, "the export without a break fails"
        self._engine()

    def export(self, place: Path, tokens: int, *more: str) -> None:
        """Exports in this process."""
        limits = [*LIMITS, f"limits.max_new_tokens={tokens}", "dialect=standard"]
        lrkit(["export", str(self.checkpoint), "--samples", "1", "-o", str(place), *limits, *more])

    def _engine(self) -> None:
        """What build_engine.py leaves on a device; any bytes do, as nothing runs them."""
        self.device.mkdir()
        (self.device / "some.engine").write_bytes(bytes(3_000_000))
        entry = {
            "file": "engines/some.engine", "kind": "tensorrt", "version": "10.13.0", "graph": "program",
            "archs": ["sm87"], "profile": {"input_ids": [[1], [9], [99]]}, "build_seconds": 1.5,
        }  # fmt: skip
        digest = open_bundle(self.old).manifest.files["latent.onnx"].sha256
        taken = {"role": "latent", "entry": entry, "onnx_sha256": digest}
        (self.device / "engines.json").write_text(json.dumps({"schema": 1, "kind": "engines", "engines": [taken]}))

    def start(self, work: str, place: Path) -> None:
        """What is there before the work begins."""
        if work != "export":
            shutil.copytree(self.old, place)

    def do(self, work: str, place: Path) -> None:
        """The work, in this process."""
        if work in ("export", "force"):
            self.export(place, NEW, *(["--force"] if work == "force" or place.exists() else []))
        elif work == "take":
            lrkit(["engines", str(place), "--take", str(self.device / "engines.json")])
        else:
            lrkit(["engines", str(place), "--engine", "tensorrt-rtx", "--arch", "sm89"])

    def check(self, work: str, place: Path, again: bool = False) -> str:
        """absent, old or new; raises where the folder is anything else. After the work was done `again` it is new, and
        nothing else is beside it or in it."""
        if not place.exists():
            assert work == "export" and not again, "the bundle that was there is gone"
            return "absent"
        problems = check_bundle(place).problems
        assert not problems, problems
        manifest = open_bundle(place).manifest
        engines = len(manifest.programs["latent"].engines)
        new = manifest.limits.max_new_tokens == NEW if work in ("export", "force") else engines == 1
        if again:
            beside = sorted(path.name for path in place.parent.iterdir())
            named = {*manifest.files, "bundle.json"}
            inside = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
            assert new and beside == [place.name] and inside == named, (beside, inside - named)
        return "new" if new else "old"


WORKS = ("export", "force", "take", "build")


def main() -> None:
    """The command line; exits with 1 where a folder is not what it may be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="kills at random moments")
    parser.add_argument("--at", action="append", default=[], help="WORK:WHEN:NAME:N, each in a folder of its own")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    generator = random.Random(asked.seed)
    works = [work for work in WORKS if work != "build" or installed_version("tensorrt-rtx")]
    with tempfile.TemporaryDirectory() as made:
        lab = Lab(Path(made))
        for moment in asked.at:
            work, when, name, count = moment.split(":")
            ended, seen = killed(lab, work, Path(made), partial(kill_at, when, name, int(count)), None)
            assert ended == -signal.SIGKILL, f"{moment} never came: {ended}"
            print(f"{moment}: {seen}", flush=True)
        seconds: dict[str, float] = {}
        counts: dict[str, int] = {}
        for number in range(asked.kills):
            work = works[number % len(works)]
            if work not in seconds:
                began = time.monotonic()
                killed(lab, work, Path(made), None, None)
                seconds[work] = time.monotonic() - began
            after, by = generator.uniform(0, seconds[work]), generator.choice(SIGNALS)
            ended, seen = killed(lab, work, Path(made), None, (after, by))
            counts[f"{work} {seen}"] = counts.get(f"{work} {seen}", 0) + 1
            print(f"{work} after {after:.2f} s by {by.name}: {ended}, {seen}", flush=True)
        if asked.kills:
            print(f"{asked.kills} kills: {counts}", flush=True)


def killed(
    lab: Lab, work: str, folder: Path, inside: Callable[[], None] | None, later: tuple[float, signal.Signals] | None
) -> tuple[int, str]:
    """(how the process ended, what was in the folder then); the work is done once more afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        place = Path(made) / "bundle"
        lab.start(work, place)

        def run() -> None:
            if inside is not None:
                inside()
            lab.do(work, place)

        ended = child(run, later)
        assert ended in (0, INTERRUPTED, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM), f"failed: {ended}"
        seen = lab.check(work, place)
        if ended in (INTERRUPTED, 128 + signal.SIGTERM):
            beside = [path.name for path in Path(made).iterdir() if path.name != "bundle"]
            assert not beside, f"interrupted, and {beside} is left"
        assert child(lambda: lab.do(work, place)) == 0, "the work after a kill fails"
        lab.check(work, place, again=True)
        return ended, seen


def child(run: Callable[[], None], later: tuple[float, signal.Signals] | None = None) -> int:
    """Runs it in a process of its own, which is sent a signal later; the exit code, or minus the signal."""
    process = os.fork()
    if not process:
        code = 1
        try:
            code = code_of(run)
        except KeyboardInterrupt:  # before the command line listened
            code = INTERRUPTED
        finally:
            os._exit(code)
    if later is not None:
        time.sleep(later[0])
        os.kill(process, later[1])
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def code_of(run: Callable[[], None]) -> int:
    """Runs it in this process, without its output, which nobody asked for; the exit code."""
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            run()
    except SystemExit as stop:
        if stop.code not in (0, INTERRUPTED):
            print(said.getvalue(), file=sys.__stderr__, flush=True)
        return int(stop.code or 0)
    return 0


def kill_at(when: str, name: str, count: int) -> None:
    """From here on this process kills itself at the moment."""
    left = count

    def around(place: Callable[..., Any], last: int) -> Callable[..., Any]:
        def replaced(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            hit = Path(os.fspath(arguments[last])).name == name
            left -= hit
            if hit and left == 0 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = place(*arguments, **named)
            if hit and left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return replaced

    os.rename, os.replace = around(os.rename, 1), around(os.replace, 1)
    folders._exchange = around(folders._exchange, 1)  # pyright: ignore[reportPrivateUsage]


if __name__ == "__main__":
    main()
