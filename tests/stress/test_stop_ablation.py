"""Ctrl-C while an ablation runs: the run in progress saves its state, and no other one begins."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("sklearn")


@pytest.mark.slow
def test_ctrl_c_ends_an_ablation_and_no_other_run_begins(tmp_path: Path) -> None:
    """The pool of processes held the next run ready, and trained it to its end after Ctrl-C."""
    (tmp_path / "sweep.yaml").write_text(
        "name: two\nrecipe: smoke\ncommon: [eval.samples=0, stages.2.updates=4000]\n"
        "variants: {one: [], other: [model.routing.depth=0]}\nseeds: [0]\nsets: ['trail:main']\nsamples: 4\n"
    )
    program = [sys.executable, "-W", "ignore", "-m", "lrkit", "ablate", "sweep.yaml", "-o", "runs"]
    running = subprocess.Popen(
        program,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "runs" / "one-0" / "run.json").is_file():
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 130 and "the same command goes on" in said and "Traceback" not in said, said
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"one-0"}
