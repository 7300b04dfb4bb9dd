"""Notices that another process of a run is gone, wherever this one stands: a thread, with a pulse in a common store.

    run.py -> `watched` -> `Watch`, one per process -> the store that torch's processes meet in

gloo raises at once where another process is killed. NCCL waits, and so does everybody where a machine loses its power
or a process hangs. A run of one process has no watch.
"""

import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Protocol

from accelerate import Accelerator
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lrkit.errors import EXIT_CODE, clean
from lrkit.train.stop_signals import TrainingInterrupted
from lrkit.train.together import lost

EVERY_SEC = 5.0
"""Between two looks."""
PATIENCE_SEC = 40.0
"""A pulse that stands still for so long is that of a process that is gone."""
_DONE, _FAILED = b"done", b"failed"


class Store(Protocol):
    """What a watch asks of torch's store."""

    def set(self, key: str, value: str, /) -> None: ...
    def check(self, keys: list[str], /) -> bool: ...
    def get(self, key: str, /) -> bytes: ...


class Watch:
    """The pulse of one process, and what it has seen of the others'."""

    def __init__(self, store: Store, process: int, processes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._process, self._clock = store, process, clock
        self._beats = 0
        # Before its first pulse a process counts as one that stands still.
        self._seen = {other: (b"", clock()) for other in range(processes) if other != process}

    def look(self) -> str | None:
        """One pulse; says which process is gone, None where all are there."""
        try:
            self._beats += 1
            self._store.set(_key(self._process), str(self._beats))
            return next(filter(None, map(self._missing, self._seen)), None)
        except RuntimeError:  # the store is kept by the first process, or by what started it
            return "the one that all meet at cannot be reached"

    def end(self, well: bool) -> None:
        """This process leaves: the others need not wait to find out how."""
        with suppress(RuntimeError):
            self._store.set(_key(self._process), (_DONE if well else _FAILED).decode())

    def _missing(self, other: int) -> str | None:
        before, since = self._seen[other]
        now = self._store.get(_key(other)) if self._store.check([_key(other)]) else b""
        if now == _FAILED:
            return f"process {other} failed"
        if now != before:
            self._seen[other] = (now, self._clock())
        elif now != _DONE and self._clock() - since > PATIENCE_SEC:
            return f"process {other} has not been heard of for {PATIENCE_SEC:.0f} seconds"
        return None


@contextmanager
def watched(accelerator: Accelerator, then: str) -> Generator[None]:
    """A context in which this process ends with a sentence where another one is gone; `then` says how to go on."""
    if accelerator.num_processes == 1 or "MASTER_ADDR" not in os.environ:
        yield
        return
    watch = Watch(_meeting_point(), accelerator.process_index, accelerator.num_processes)
    left = threading.Event()
    thread = threading.Thread(target=_look, args=(watch, left, then), name="lrkit-watch", daemon=True)
    thread.start()
    well = False
    try:
        yield
        well = True
    except TrainingInterrupted:  # all processes stop then
        well = True
        raise
    finally:
        left.set()
        thread.join()
        watch.end(well)


def _look(watch: Watch, left: threading.Event, then: str) -> None:
    while not left.wait(EVERY_SEC):
        # Where the main thread notices it too, it ends the process in order.
        if (missing := watch.look()) is not None and not left.wait(EVERY_SEC):
            with suppress(OSError):
                os.write(2, f"error: {clean(str(lost(missing, then)))}\n".encode())
            os._exit(EXIT_CODE)


def _meeting_point() -> Store:
    """A connection of its own: the group's may be held by an operation that waits."""
    where, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return PrefixStore("lrkit-watch", TCPStore(where, port, is_master=False, timeout=timedelta(seconds=PATIENCE_SEC)))


def _key(process: int) -> str:
    return f"pulse/{process}"
