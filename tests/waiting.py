"""Waiting for what another process does. No verdict depends on how long it takes: the bound only ends a test that would
otherwise wait until somebody stops it."""

import threading
from collections.abc import Callable

_PAUSE_SEC = 0.02
_TRIES = 30_000


def until(happened: Callable[[], object], alive: Callable[[], object] = lambda: True) -> None:
    """Returns once `happened()`; fails where it cannot happen any more, because what it waits for is not `alive()`."""
    pause = threading.Event()
    for _ in range(_TRIES):
        if happened():
            return
        assert alive(), "what was waited for has ended"
        pause.wait(_PAUSE_SEC)
    raise AssertionError("waited in vain")
