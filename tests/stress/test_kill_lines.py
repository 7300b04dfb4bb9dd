"""Many lines on a Ray cluster of two workers: those who answer and those who lead are killed, and every row is there
once, as one process writes it. Kills are at named moments and at random ones with seeds (at_start/sitecustomize.py)."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from lrkit.train.stop_signals import AGAIN
from tests.commands import lrkit
from tests.lines import KILLED, SHARD, ended, started, write_lines
from tests.waiting import until

pytest.importorskip("onnx")
pytest.importorskip("ray", reason='needs the package ray: pip install "lrkit[ray]"')

HERE = Path(__file__).resolve().parent
NO_TORCH = "torch,transformers,peft,accelerate"


class Lab:
    """Lines, a bundle, and what one process makes of them."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.bundle, self.lines, self.out = bundle, write_lines(folder / "lines"), folder / "out"
        self.marks = folder / "marks"
        self.marks.mkdir()
        assert lrkit("ask", *self.words(folder / "plain")) == 0
        self.wanted = (folder / "plain" / "answers.jsonl").read_bytes()

    def words(self, out: Path) -> tuple[object, ...]:
        return self.bundle, "--data", self.lines, "--threads", 1, "--shard-lines", SHARD, "-o", out

    def on_ray(self, **how: str) -> "subprocess.Popen[str]":
        """Begins, or goes on, with two workers."""
        path = os.pathsep.join(filter(None, (str(HERE / "at_start"), os.environ.get("PYTHONPATH"))))
        told = {"AT_START_IN": str(self.out), "AT_START_MARKS": str(self.marks), "PYTHONPATH": path}
        told |= {f"AT_START_{name}": value for name, value in how.items()}
        return started("ask", *self.words(self.out), "--engine", "ray", "--workers", 2, **told)

    def killed(self) -> int:
        """How many were, so far."""
        return sum(not mark.name.startswith("process-") for mark in self.marks.iterdir())

    def done(self) -> bool:
        """All is there, once, and nothing else."""
        same = (self.out / "answers.jsonl").read_bytes() == self.wanted
        return same and sorted(path.name for path in self.out.iterdir()) == ["answers.jsonl", "job.json"]


@pytest.fixture
def lab(bundle: Path, tmp_path: Path) -> Lab:
    return Lab(bundle, tmp_path)


@pytest.mark.long
def test_workers_that_are_killed_before_and_after_a_shard_has_its_name_lose_no_row_and_double_none(lab: Lab) -> None:
    """None of the processes can import torch."""
    code, said = ended(lab.on_ray(KILL="before:0000001.jsonl:1,after:0000002.jsonl:1", NO=NO_TORCH))
    assert code == 0, said
    assert lab.killed() == 2 and lab.done() and "23 lines answered: " in said


@pytest.mark.slow
def test_a_leader_that_is_killed_goes_on_with_what_its_workers_did(lab: Lab) -> None:
    leader = lab.on_ray()
    until(lambda: list(lab.out.glob("shards/*.jsonl")), lambda: leader.poll() is None)
    leader.kill()
    assert ended(leader)[0] == KILLED and not (lab.out / "answers.jsonl").exists()
    code, said = ended(lab.on_ray(KILL="before:answers.jsonl:1"))
    assert code == KILLED and not (lab.out / "answers.jsonl").exists(), said
    assert lrkit("ask", *lab.words(lab.out)) == 0, "one process goes on with what Ray left"
    assert lab.done()


@pytest.mark.slow
def test_a_scheduler_that_stops_the_leader_is_told_to_try_again(lab: Lab) -> None:
    leader = lab.on_ray()
    until(lambda: list(lab.out.glob("shards/*.jsonl")), lambda: leader.poll() is None)
    leader.send_signal(signal.SIGTERM)
    code, said = ended(leader)
    assert code == AGAIN and said.splitlines()[-1].endswith("the same command goes on from what is done")
    assert lrkit("ask", *lab.words(lab.out)) == 0 and lab.done()


@pytest.mark.slow
def test_a_shard_that_ends_every_worker_is_named_in_one_sentence(lab: Lab) -> None:
    code, said = ended(lab.on_ray(KILL="before:0000001.jsonl:99"))
    assert code == 2 and lab.killed() == 3
    assert f"shard 1 (lines 5 to 8 of {lab.lines}): ended its worker 3 times" in said
    assert [line for line in said.splitlines() if line.startswith("error: ")] == said.splitlines()[-1:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_kills_of_workers_and_leaders_leave_every_row_once(lab: Lab, seed: int) -> None:
    """Whoever has the first event of a process may be the one to die, the leader too."""
    for _ in range(6):
        code, said = ended(lab.on_ray(SEEDS=f"{seed}:5:9"))
        assert code in (0, KILLED), said
        if code == 0:
            break
    assert code == 0 and lab.killed() >= 2 and lab.done()
