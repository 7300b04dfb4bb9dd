"""Moments of a training: every file that it opens to write, renames, cuts or removes, every line and every update.

A child counts them as they come (`watch`), and at the n-th one something happens to it: a signal, a disk that refuses,
a limit on the size of files. So a moment is a place in the work, and no clock decides what a seed leads to.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from errno import EDQUOT, EIO, ENOSPC, EROFS
from pathlib import Path
from random import Random
from typing import Any

from lrkit.train import metrics
from lrkit.train.display import Display

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
REFUSALS = (ENOSPC, EDQUOT, EROFS, EIO)

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Moment:
    """What happens to a child, and when."""

    at: int
    """At which event."""
    what: str
    """kill, signal, cut (killed by the limit on the size of files, in the middle of a write), limit, refuse."""
    number: int = 0
    """The signal, the bytes, or the error of the disk."""

    def __str__(self) -> str:
        return f"{self.what} {self.number} at event {self.at}"


def a_kill(generator: Random, events: int, state_bytes: int) -> Moment:
    """Half of them are SIGKILL, the others a cut write or a signal that is heard."""
    what = generator.choice(("kill", "kill", "cut", "signal"))
    number = generator.choice(SIGNALS) if what == "signal" else generator.randint(1, state_bytes) * (what == "cut")
    return Moment(generator.randint(1, events), what, number)


def a_fault(generator: Random, events: int, state_bytes: int) -> Moment:
    """A disk that refuses from then on, or a limit on the size of files."""
    what = generator.choice(("refuse", "refuse", "limit"))
    number = generator.choice(REFUSALS) if what == "refuse" else generator.randint(1, state_bytes)
    return Moment(generator.randint(1, events), what, number)


class Events:
    """The events of this process. Hooks of Python cannot be taken back, so a process is watched once."""

    def __init__(self, folder: Path, moment: Moment | None) -> None:
        self.count = 0
        self._folder, self._moment = str(folder), moment

    def happens(self, on_disk: bool) -> None:
        """Counts one, and does what the moment says."""
        self.count += 1
        moment = self._moment
        if moment is None or self.count < moment.at or (self.count > moment.at and moment.what != "refuse"):
            return
        if moment.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif moment.what == "signal":
            signal.raise_signal(moment.number)
        elif moment.what in ("cut", "limit"):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if moment.what == "cut" else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (moment.number, resource.RLIM_INFINITY))
        elif on_disk:
            raise OSError(moment.number, os.strerror(moment.number), self._folder)

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's audit hook."""
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        exchanges = event == "ctypes.dlsym" and arguments[1] == "renameat2"
        if exchanges or ((writes or event in _CHANGES) and self._of_run(arguments[0])):
            self.happens(on_disk=not exchanges)

    def _of_run(self, path: Any) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self._folder)


def watch(folder: Path, moment: Moment | None) -> Events:
    """From here on the events of this process are counted, and the moment is waited for."""
    events = Events(folder, moment)
    sys.addaudithook(events.heard)

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def told(*arguments: Any) -> Any:
            events.happens(on_disk=False)
            return function(*arguments)

        return told

    metrics._Appender.append = before(metrics._Appender.append)
    Display.advance = before(Display.advance)
    return events
