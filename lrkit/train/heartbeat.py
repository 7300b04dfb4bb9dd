"""heartbeat.json of a run's folder: where the run stands and that it is alive, for whoever watches it. Torch-free.

    the loop, before each update and each batch of a validation -> `Heartbeat` -> RUN/heartbeat.json

It is written by the thread that trains, so a run that hangs beats no more. It is written at most every ten seconds, and
whenever the run begins to do something else. It is no part of what a run goes on from: where it cannot be written the
run goes on, and a watcher sees that it is old.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lrkit.errors import UserError
from lrkit.files import WRITING, read_json

HEARTBEAT_FILE = "heartbeat.json"
EVERY_SEC = 10.0
"""Between two beats, where nothing else changes; an update or a save that takes longer delays them."""
STALE_SEC = 600.0
"""A run of another machine whose last beat is older than this is taken for dead, where the disk knows no locks."""

State = Literal["training", "validating", "saving", "stopped", "failed", "done"]
_OVER = ("stopped", "failed", "done")


class Heartbeat:
    """Beats for one run."""

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Without a folder (all processes but the first) nothing is written."""
        self._file = None if folder is None else folder / HEARTBEAT_FILE
        self._clock = clock
        self._last: tuple[str, str, float] | None = None
        self._place: dict[str, Any] | None = None

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The last beat says how it ended."""
        if self._place is not None:
            stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
            self._write("done" if kind is None else "stopped" if stopped else "failed")

    def beat(self, state: State, stage: str, update: int, of: int, total_updates: int) -> None:
        """The run is in `state`, after `update` of `of` updates of the stage."""
        now = self._clock()
        self._place = {"stage": stage, "update": update, "of": of, "total_updates": total_updates}
        if self._due(state, stage, now):
            self._last = state, stage, now
            self._write(state)

    def _write(self, state: State) -> None:
        if self._file is None or self._place is None:
            return
        values = {
            "schema": 1,
            "state": state,
            **self._place,
            "time_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        staging = self._file.with_name(f"{WRITING}{os.getpid()}-{HEARTBEAT_FILE}")
        try:
            staging.write_text(json.dumps(values) + "\n", encoding="utf-8")
            os.replace(staging, self._file)  # nobody reads half a beat; the disk may have it later
        except OSError:
            with suppress(OSError):
                staging.unlink(missing_ok=True)

    def _due(self, state: str, stage: str, now: float) -> bool:
        if self._last is None or self._last[:2] != (state, stage):
            return True
        return now - self._last[2] >= EVERY_SEC


def refuse_alive(folder: Path) -> None:
    """For disks that know no locks: says by the last beat that another process trains in the folder.

    Ages are differences of two times of the same disk, so the clocks of machines need not agree.

    Raises:
        UserError: it is alive: on this machine its process is there; on another one it beat a short time ago.
    """
    file = folder / HEARTBEAT_FILE
    try:
        last = read_json(file)
        host, pid = last.get("host"), last.get("pid")
        if last.get("state") in _OVER or not isinstance(pid, int) or pid <= 0:
            return
        here = host == socket.gethostname()
        alive = (pid != os.getpid() and _running(pid)) if here else _age_sec(file) < STALE_SEC
    except (UserError, OSError):  # there is none
        return
    if alive:
        raise UserError(
            f"{folder}: process {pid} on {host} trains in it, as {HEARTBEAT_FILE} says (this disk knows no locks); "
            f"wait until it is done, or remove {HEARTBEAT_FILE} where it has ended"
        )


def _age_sec(file: Path) -> float:
    probe = file.with_name(f"{WRITING}{os.getpid()}-age")
    try:
        probe.write_bytes(b"now")
        return probe.stat().st_mtime - file.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
