"""Asks a run to stop, and says how its process then ends, for people and for schedulers. Torch-free.

    SIGINT (Ctrl-C)                         exit code 130
    SIGTERM, SIGUSR1, SIGXCPU, SIGHUP       exit code 75: start the same command again, with --resume

Before the loop begins a signal ends the run at once, as nothing is to be saved. From then on it sets a flag that the
loop (lrkit/train/loop.py) reads between two updates and between two batches of a validation.
"""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN = 75
"""Exit code of a run that a scheduler stopped: EX_TEMPFAIL of sysexits.h, "try again later"."""
BY_HAND = 130
"""Exit code of a run that Ctrl-C stopped."""

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGXCPU", "SIGHUP")
"""SLURM sends SIGUSR1 (--signal); LSF and `ulimit -t` SIGXCPU before the time is over; a closed terminal SIGHUP."""


class TrainingInterrupted(KeyboardInterrupt):
    """The run was asked to stop, and its state is on the disk."""

    def __init__(self, message: str, exit_code: int = BY_HAND) -> None:
        """`exit_code` is that of the command line."""
        super().__init__(message)
        self.exit_code = exit_code

    silent = False
    """Another process of the run says it."""


class StopRequest:
    """Whether somebody asked the run to stop."""

    def __init__(self, also: Callable[[], bool] | None = None) -> None:
        self.asked = False
        self.exit_code = BY_HAND
        """AGAIN where a signal of a scheduler asked."""
        self.waits = False
        """Whether somebody reads the request: the loop runs. Otherwise a signal ends the run at once."""
        self._also = also

    def __call__(self) -> bool:
        self.asked = self.asked or (self._also is not None and self._also())
        return self.asked


@contextmanager
def stop_on_signals(also: Callable[[], bool] | None = None) -> Generator[StopRequest]:
    """A context in which the first signal (or a true `also`) makes the request. A second Ctrl-C ends the program; a
    scheduler and its launcher may send theirs as often as they like. Signals that are ignored (nohup) stay so.

    Raises:
        TrainingInterrupted: a signal came while nobody read the request.
    """
    request = StopRequest(also)
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        by_hand = number == signal.SIGINT
        request.asked = True
        request.exit_code = BY_HAND if by_hand else AGAIN
        if by_hand:
            signal.signal(number, before.pop(number))
        if not request.waits:
            raise TrainingInterrupted(
                f"stopped by {signal.Signals(number).name}; the same command with --resume goes on from what is saved",
                request.exit_code,
            )

    if threading.current_thread() is threading.main_thread():
        for number in filter(None, (getattr(signal, name, None) for name in _NAMES)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: a program around Python listens
                before[number] = signal.signal(number, ask)
    try:
        yield request
    finally:
        for number in list(before):
            signal.signal(number, before.pop(number))
