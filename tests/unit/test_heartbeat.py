"""heartbeat.json: when it is written, what it says at the end, and whom it keeps out where a disk knows no locks."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from errno import ENOLCK
from pathlib import Path
from typing import Any

import pytest

from lrkit.errors import UserError
from lrkit.folders import locked
from lrkit.train.heartbeat import EVERY_SEC, HEARTBEAT_FILE, STALE_SEC, Heartbeat, refuse_alive
from lrkit.train.run_folder import held_folder
from lrkit.train.stop_signals import TrainingInterrupted


def last(folder: Path) -> dict[str, Any]:
    return json.loads((folder / HEARTBEAT_FILE).read_text())


def test_it_beats_at_every_change_and_from_time_to_time(tmp_path: Path) -> None:
    now = 0.0
    heart = Heartbeat(tmp_path, lambda: now)
    heart.beat("training", "say", 0, 9, 40)
    assert last(tmp_path).items() >= {"state": "training", "stage": "say", "update": 0, "of": 9}.items()
    heart.beat("training", "say", 1, 9, 41)
    assert last(tmp_path)["update"] == 0
    now = EVERY_SEC
    heart.beat("training", "say", 2, 9, 42)
    assert last(tmp_path)["update"] == 2
    heart.beat("validating", "say", 3, 9, 43)
    assert last(tmp_path)["state"] == "validating" and last(tmp_path)["total_updates"] == 43
    assert [path.name for path in tmp_path.iterdir()] == [HEARTBEAT_FILE]


@pytest.mark.parametrize(
    ("error", "state"), [(None, "done"), (TrainingInterrupted("stopped"), "stopped"), (UserError("full"), "failed")]
)
def test_its_last_beat_says_how_the_run_ended_and_where(
    tmp_path: Path, error: BaseException | None, state: str
) -> None:
    try:
        with Heartbeat(tmp_path, lambda: 0.0) as heart:
            heart.beat("training", "say", 1, 9, 1)
            heart.beat("training", "say", 7, 9, 7)
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    assert (last(tmp_path)["state"], last(tmp_path)["update"]) == (state, 7)


def test_a_disk_that_refuses_the_beat_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / HEARTBEAT_FILE).mkdir()
    with Heartbeat(tmp_path) as heart:
        heart.beat("training", "say", 1, 9, 1)
    assert [path.name for path in tmp_path.iterdir()] == [HEARTBEAT_FILE]


def beat_of(folder: Path, **changes: Any) -> Path:
    """The folder, with the last beat of a run that trains elsewhere."""
    values = {"schema": 1, "state": "training", "host": "node7", "pid": 4711} | changes
    (folder / HEARTBEAT_FILE).write_text(json.dumps(values))
    return folder


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-S", "-c", ""])
    done.wait()
    return done.pid


def test_a_run_that_beats_elsewhere_keeps_others_out_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(ENOLCK, os.strerror(ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=r"process 4711 on node7 trains in it, as heartbeat\.json says") as caught:  # noqa: SIM117
        with held_folder(beat_of(tmp_path)):
            pass
    assert "\n" not in str(caught.value)
    with held_folder(beat_of(tmp_path, state="stopped")):
        pass
    monkeypatch.undo()
    with held_folder(beat_of(tmp_path)):  # a lock that was had says more than a beat
        pass


def test_an_old_beat_and_a_dead_process_keep_nobody_out(tmp_path: Path) -> None:
    here = socket.gethostname()
    file = beat_of(tmp_path) / HEARTBEAT_FILE
    written = file.stat().st_mtime
    os.utime(file, (written - STALE_SEC - 5, written - STALE_SEC - 5))
    refuse_alive(tmp_path)
    refuse_alive(beat_of(tmp_path, host=here, pid=dead_process()))
    with pytest.raises(UserError, match=f"on {here} trains in it"):
        refuse_alive(beat_of(tmp_path, host=here, pid=os.getppid()))
    for broken in ("", "{}", '{"pid": "x"}', '{"pid": -1, "host": 3}'):
        (tmp_path / HEARTBEAT_FILE).write_text(broken)
        refuse_alive(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [HEARTBEAT_FILE]


def test_a_lock_names_who_holds_it(tmp_path: Path) -> None:
    said = rf"wait until it is done \(process {os.getpid()} on {socket.gethostname()}\), or give another"
    with (
        locked(tmp_path, "trains in", inside=True) as certain,
        pytest.raises(UserError, match=said),
        locked(tmp_path, "trains in", inside=True),
    ):
        pass
    assert certain and list(tmp_path.iterdir()) == []
    (tmp_path / ".lock").write_text("99999999 a-host-that-died\n" * 3)  # of a process that was killed
    with locked(tmp_path, "trains in", inside=True):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
