"""Trains on a small disk that fills up, and on one that becomes read-only; then gives it room, and resumes.

    unshare -rm python -m tests.stress.full_disk

It mounts a disk in memory, which takes a namespace of its own (`unshare -rm`) or root. At each size the run ends with
one sentence and leaves a whole state and whole checkpoints; with more room it becomes the run without a break.
"""

import os
import signal
import subprocess
import tempfile
from pathlib import Path

from lrkit.data.trail import trail_set
from lrkit.resources import STATE_FILE, find_recipe
from lrkit.train.recipe import Recipe, load_recipe
from tests.stress.kill_training import DONE, KEEP, REFUSED, UPDATES, differences, finish, report, run
from tests.stress.kill_training import stands_for_its_last_checkpoint as check
from tests.stress.moments import Moment, watch

SHARES = (0.35, 0.7, 0.95)
"""Of what the whole run takes at its largest."""
ROOM = "512m"


def main() -> None:
    """The command line; exits with 1 where a run differs."""
    trail_set("main", "train", 1)
    recipe = load_recipe(find_recipe("smoke"), [*KEEP, *UPDATES])
    with tempfile.TemporaryDirectory() as made:
        whole, disk = Path(made) / "whole", Path(made) / "disk"
        disk.mkdir()
        assert run(recipe, whole) == DONE, "the run without a break fails"
        files = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
        needed = sum(files) + (whole / STATE_FILE).stat().st_size  # the next one is written beside it
        for share in SHARES:
            mount(disk, "-t", "tmpfs", "-o", f"size={int(needed * share) // 4096 * 4}k")
            refused(f"a disk of {share:.0%}", recipe, disk, whole, room=f"remount,size={ROOM}")
        mount(disk, "-t", "tmpfs", "-o", f"size={ROOM}")
        stop = Moment(200, "signal", signal.SIGTERM)
        assert run(recipe, disk / "run", inside=lambda: watch(disk / "run", stop)) != DONE
        mount(disk, "-o", "remount,ro")
        refused("a disk that can only be read", recipe, disk, whole, room="remount,rw")


def refused(what: str, recipe: Recipe, disk: Path, whole: Path, room: str) -> None:
    """The run ends with one sentence, and with room it becomes the whole one."""
    folder = disk / "run"
    ended = run(recipe, folder)
    assert ended == REFUSED, f"{what}: the run ended with {ended}"
    if folder.exists():
        check(folder)
    mount(disk, "-o", room)
    report(what, 1, finish(recipe, folder), differences(whole, folder))
    subprocess.run(["umount", disk], check=True)


def mount(disk: Path, *options: str) -> None:
    """Mounts a disk in memory, or changes it."""
    source = [] if "remount" in options[-1] else ["tmpfs"]
    subprocess.run(["mount", *options, *source, os.fspath(disk)], check=True)


if __name__ == "__main__":
    main()
