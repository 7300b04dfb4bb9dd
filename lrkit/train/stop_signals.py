"""Asks a run to stop: signals set a flag that the loop (lrkit/train/loop.py) reads between two updates."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """The run was asked to stop, and has saved its state."""


class StopRequest:
    """Whether somebody asked the run to stop."""

    def __init__(self, also: Callable[[], bool] | None = None) -> None:
        self.asked = False
        self._also = also

    def __call__(self) -> bool:
        self.asked = self.asked or (self._also is not None and self._also())
        return self.asked


@contextmanager
def stop_on_signals(also: Callable[[], bool] | None = None) -> Generator[StopRequest]:
    """A context in which the first SIGINT or SIGTERM (or a true `also`) makes the request. A second ends the
    program."""
    request = StopRequest(also)
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        request.asked = True
        _put_back(before)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    try:
        yield request
    finally:
        _put_back(before)


def _put_back(handlers: dict[int, Any]) -> None:
    for number in list(handlers):
        signal.signal(number, handlers.pop(number))
