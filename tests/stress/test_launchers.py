"""torchrun and accelerate launch themselves, with two processes on CPUs: one killed, a run that goes on, a mistake in
the command."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lrkit.cli.shared.launched import Crew
from lrkit.train.metrics import read_metrics
from tests.stress.side_by_side import compared, free_port
from tests.waiting import until

pytest.importorskip("sklearn")
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--master-port"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"],
}
UPDATES = [f"stages.{stage}.updates={count}" for stage, count in enumerate((2, 2, 40))]
SMOKE = ["smoke", "eval.show=0", "eval.samples=3", "eval.every=0", "save_every=2", *UPDATES]


def environment() -> dict[str, str]:
    """As a user's, without what another launcher left behind."""
    left = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU")
    return {**{name: value for name, value in os.environ.items() if name not in left}, "OMP_NUM_THREADS": "1"}


def launched(launcher: str, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", *LAUNCHERS[launcher], str(free_port()), "-m", "lrkit", "train", *words]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def child(parent: int, rank: int) -> int | None:
    """The process of that rank that the launcher has started."""
    for folder in Path(f"/proc/{parent}/task").iterdir():
        for pid in (folder / "children").read_text().split():
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return int(pid)
    return None


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process without a launcher."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    alone = [sys.executable, "-m", "lrkit", "train", *SMOKE, "-o", str(folder)]
    subprocess.run(alone, env=environment(), check=True, capture_output=True)
    return folder


@pytest.mark.long
@pytest.mark.parametrize(("launcher", "killed"), [("torchrun", 1), ("accelerate", 0)])
def test_a_killed_process_ends_the_other_with_a_sentence_and_the_run_goes_on(
    launcher: str, killed: int, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    metrics = folder / "metrics.jsonl"
    run = launched(launcher, *SMOKE, "-o", str(folder))
    until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 8, lambda: run.poll() is None)
    victim = child(run.pid, killed)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    said, _ = run.communicate()
    (error,) = errors(said)
    assert error.startswith("error: another process of this run has ended") and "--resume goes on" in error
    # The launcher's own report: who was killed, and who left by itself.
    assert sorted(map(int, re.findall(r"exitcode +: (-?\d+)", said))) == [-signal.SIGKILL, 2], said
    assert not json.loads((folder / "run.json").read_text()).get("done")

    again = launched(launcher, *SMOKE, "-o", str(folder), "--resume")
    said, _ = again.communicate()
    assert again.returncode == 0 and not errors(said), said
    assert "log within" in compared(whole, folder)
    assert [line["update"] for line in read_metrics(folder) if "loss" in line] == list(range(1, 45))


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["smoke", "optimizer.lr=-1"], "error: override: optimizer.lr: got -1"),
        (["smoke", "--no-such-option"], "--no-such-option"),
        (["no-such-recipe"], "no-such-recipe"),
    ],
)
def test_a_mistake_in_the_command_is_told_once(words: list[str], told: str, tmp_path: Path) -> None:
    for launcher in LAUNCHERS:
        run = launched(launcher, *words, "-o", str(tmp_path / "run"))
        said, _ = run.communicate()
        (error,) = errors(said)
        assert told in error and run.returncode == 1
        assert "exitcode  : 2 " in said


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "once"),
    [
        (["--help"], "Usage: lrkit train"),
        (["smoke", "--plan"], "nothing was run or measured"),
        (["smoke", "--dry-run"], "nothing wrong was found"),
    ],
)
def test_what_is_no_training_is_printed_once(words: list[str], once: str, tmp_path: Path) -> None:
    report = [] if words == ["--help"] else ["--json", str(tmp_path / "report.json")]
    run = launched("torchrun", *words, *report)
    said, _ = run.communicate()
    assert run.returncode == 0 and said.count(once) == 1, said
    assert not report or json.loads((tmp_path / "report.json").read_text())["recipe"] == "smoke"


CONFIG = "compute_environment: LOCAL_MACHINE\nmachine_rank: 0\nnum_machines: 1\nnum_processes: 2\nuse_cpu: true\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "kind", "processes"),
    [
        (["--multi_gpu", "--num_processes", "2"], None, 2),
        ([], "MULTI_GPU", 2),
        (["--cpu", "--num_processes", "2"], None, 1),
        ([], "MULTI_CPU", 1),
    ],
)
def test_which_words_make_accelerate_start_two_processes_on_cpus(
    flags: list[str], kind: str | None, processes: int, tmp_path: Path
) -> None:
    """As train/README.md says. MULTI_CPU leaves it to mpirun to start more than one."""
    (tmp_path / "started.py").write_text("import os\nprint('started of', os.environ.get('WORLD_SIZE', '1'))\n")
    if kind is not None:
        (tmp_path / "config.yaml").write_text(f"{CONFIG}distributed_type: {kind}\n")
        flags = ["--config_file", str(tmp_path / "config.yaml")]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--main_process_port", str(free_port())]
    done = subprocess.run([*command, str(tmp_path / "started.py")], env=environment(), capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"started of {processes}"] * processes, done.stderr


@pytest.mark.long
def test_fsdp_of_accelerate_is_refused_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
    command += ["--num_processes", "2", "--main_process_port", str(free_port()), "-m", "lrkit", "train", *SMOKE]
    done = subprocess.run([*command, "-o", str(tmp_path / "run")], env=environment(), capture_output=True, text=True)
    (error,) = errors(done.stdout + done.stderr)
    assert error.startswith("error: FSDP is asked for (ACCELERATE_USE_FSDP)") and "set shard=true" in error
    assert "exitcode  : 2 " in done.stderr and not (tmp_path / "run").exists()


def follower(*words: object) -> "subprocess.CompletedProcess[str]":
    """The second of two processes; nobody has started the first."""
    env = {**environment(), "RANK": "1", "WORLD_SIZE": "2"}
    command = [sys.executable, "-W", "ignore", "-m", "lrkit", "train", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_a_process_that_follows_prints_no_help_no_plan_and_no_dry_run(tmp_path: Path) -> None:
    for words in (["-h"], ["smoke", "--plan"], ["smoke", "--dry-run"]):
        report = [] if words == ["-h"] else ["--json", tmp_path / "report.json"]
        done = follower(*words, *report)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(tmp_path.iterdir())


def test_a_process_that_follows_speaks_only_where_nobody_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert Crew.of(["train", "smoke"]) == Crew(1, 2) and Crew.of(["ask"]) == Crew()
        assert Crew.of(["train"]).tells(patience_sec=0.0)
        assert Crew(0, 2).tells() and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_that_follows_is_silent_once_the_launcher_ends_it(tmp_path: Path) -> None:
    """Whenever it comes: while Python begins, or once the process waits."""
    command = [sys.executable, "-m", "lrkit", "train", "smoke", "optimizer.lr=-1", "-o", str(tmp_path / "run")]
    env = {**environment(), "RANK": "1", "WORLD_SIZE": "2"}
    follower = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{follower.pid}/status")
    mask = 1 << (signal.SIGTERM - 1)
    until(
        lambda: int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16) & mask, lambda: follower.poll() is None
    )
    follower.terminate()
    out, err = follower.communicate()
    assert (out, err) == ("", "") and follower.returncode in (2, 130)
