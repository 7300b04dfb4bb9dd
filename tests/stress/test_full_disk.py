"""A disk that fills up while a model trains, and one that becomes read-only: real ones, in memory."""

import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("sklearn")


def can_mount() -> bool:
    """May this process mount a disk in a namespace of its own?"""
    if shutil.which("unshare") is None or not hasattr(os, "fork"):
        return False
    trial = "mount -t tmpfs -o size=64k tmpfs /mnt"
    return subprocess.run(["unshare", "-rm", "sh", "-c", trial], capture_output=True, check=False).returncode == 0


@pytest.mark.long
def test_a_run_on_a_disk_without_room_ends_in_a_sentence_and_goes_on_when_there_is_some() -> None:
    if not can_mount():
        pytest.skip("no disk can be mounted here")
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-W", "ignore", "-m", "tests.stress.full_disk"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all(line.endswith("1 kills, the same") for line in lines)
    sentences = [line for line in done.stderr.splitlines() if line]
    assert len(sentences) == 4 and all(line.startswith("FileError: ") for line in sentences), sentences
