"""A training that a launcher (torchrun, accelerate launch) started in several processes: which of them says what it
found, or what went wrong, so that it is said once and whole.

    lrkit/cli/main.py, where help is asked for, or a verb failed or was stopped -> `Crew` -> whether this process speaks
    lrkit/cli/train.py, for plans, dry runs and results                         -> `Crew`

A launcher ends all processes as soon as one has ended. So the first must not be ended before it has spoken, neither by
a quicker one that found the same mistake nor by the launcher, which saw that one is gone.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_HELP = {"-h", "--help"}
PATIENCE_SEC = 30.0
"""How long another process than the first waits to be ended. After that it may be the only one with this mistake, as
where a file is missing on its machine alone."""


class _Ended(Exception):
    """The launcher ends this process."""


@dataclass(frozen=True)
class Crew:
    """This process among those of its training."""

    process: int = 0
    processes: int = 1

    @classmethod
    def of(cls, given: Sequence[str]) -> "Crew":
        """As the environment of a launcher says; the words of other verbs than train are of one process."""
        if list(given[:1]) != ["train"]:
            return cls()
        return cls(_number("RANK", 0), _number("WORLD_SIZE", 1))

    @property
    def follows(self) -> bool:
        """Is there a first process beside this one?"""
        return self.processes > 1 and self.process > 0

    def leaves_help(self, given: Sequence[str]) -> bool:
        """Whether help is asked for, and the first process is there to give it."""
        return self.follows and bool(_HELP & set(given))

    def tells(self, patience_sec: float = PATIENCE_SEC) -> bool:
        """Whether this process says its error. Once the processes have joined, the training itself sees to it that one
        alone has something to say (lrkit/train/together.py); before, the same is wrong in all, and the first says it.
        """
        if self.processes == 1:
            return True
        if self.follows and not _joined():
            return not _is_ended_within(patience_sec)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself, with its own exit code
        return True


def _joined() -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_ended_within(patience_sec: float) -> bool:
    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Ended

    try:
        signal.signal(signal.SIGTERM, end)
        time.sleep(patience_sec)
    except (_Ended, KeyboardInterrupt):
        return True
    return False


def _number(variable: str, otherwise: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else otherwise
