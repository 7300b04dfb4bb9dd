"""Ends a run before its end: after a time, when the caller says so, at Ctrl-C. Torch-free.

Place in the pipeline: `Reasoner.ask(timeout=, cancel=)` -> `Stop`, in `AskOptions` -> the engine opens a `Running`
around its work -> what computes asks `current()`: between steps by `check`, and within one by telling it how to end
(`ends_by`).

ONNX Runtime holds the calling thread until a program has answered, and only then does Python call the handler of
Ctrl-C. So a watcher listens where the system writes each signal (`signal.set_wakeup_fd`) and ends the run, which costs
an answer nothing. Then the handler is called. Where it does not raise, the run is repeated. One more thread looks for
a time-out or a cancel, fifty times a second.
"""

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from numbers import Real
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from lrkit.errors import Cancelled, TimeoutExceeded, UserError, one_line

_ENDING = {signal.SIGINT, signal.SIGTERM}
Reason = Literal["timeout", "cancel", "interrupt"]
_LOOKS_PER_SEC = 50  # how often the watcher looks for what is over
_PARKED_AFTER_SEC = 5  # without a run, until it sleeps


class CancelFlag(Protocol):
    """What may be given as `cancel`: a `threading.Event`, or anything else that can be asked."""

    def is_set(self) -> bool:
        """Whether the run is to end."""
        ...


@dataclass(frozen=True)
class Stop:
    """When an answer must end, whatever it is doing."""

    timeout: float | None = None
    """Seconds that were allowed."""
    deadline: float | None = None
    """`time.monotonic()` at which they are over."""
    cancel: CancelFlag | None = None
    """Set by another thread."""

    @classmethod
    def within(cls, timeout: float | None = None, cancel: CancelFlag | None = None) -> Self:
        """Counts `timeout` from now.

        Raises:
            UserError: a time-out that is no number above 0, or a cancel that cannot be asked.
        """
        if timeout is None:
            deadline = None
        else:
            timeout = _seconds(timeout)
            deadline = time.monotonic() + timeout
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise UserError(f"cancel is of type {type(cancel).__name__}; give a threading.Event, or None")
        return cls(timeout, deadline, cancel)


def _seconds(timeout: Any) -> float:
    sentence = "give seconds above 0, or None for no limit"
    if isinstance(timeout, bool) or not isinstance(timeout, Real):  # numpy's numbers are Real, its bools are not
        raise UserError(f"timeout is of type {type(timeout).__name__}; {sentence}")
    seconds: Any = timeout
    if not 0 < seconds < math.inf:
        raise UserError(f"timeout is {seconds}; {sentence}")
    return float(min(seconds, threading.TIMEOUT_MAX / 2))


class Running:
    """One run that can be ended. Used by the thread that runs it; `current()` finds it there."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._reason: Reason | None = None
        self._end: Callable[[], None] | None = None
        self._outer: Running | None = None

    def __enter__(self) -> Self:
        self._outer, _local.running = current(), self
        self._interrupts = _INTERRUPTS.told_to(lambda: self.end("interrupt"))
        self._interrupts.__enter__()
        if self._stop.deadline is not None or self._stop.cancel is not None:
            _WATCHER.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _WATCHER.remove(self)
        self._interrupts.__exit__(None, None, None)
        _local.running = self._outer

    def ends_by(self, end: Callable[[], None]) -> None:
        """From now on `end`, called from another thread, ends what is being computed. It is called at once where the
        run is to end already."""
        self._end = end
        if self._reason is not None:
            end()

    def end(self, reason: Reason) -> None:
        """Ends the run; from any thread."""
        self._reason = self._reason or reason
        if (end := self._end) is not None:
            end()

    def check(self) -> None:
        """Ends the run here if it is to end: called between two steps, and after one that failed.

        Raises:
            TimeoutExceeded: its time is over.
            Cancelled: it was cancelled.
            UserError: what was given as `cancel` cannot be asked.
        """
        stop = self._stop
        if self._is_cancelled() or self._reason == "cancel":
            raise Cancelled("the answer was cancelled before it was complete; ask again where it is wanted")
        if self._reason == "timeout" or (stop.deadline is not None and time.monotonic() >= stop.deadline):
            raise TimeoutExceeded(
                f"there was no answer within the {stop.timeout:g} s that were allowed; allow more (timeout), or ask "
                "for less (max_new_tokens, max_latent_steps)"
            )

    def was_interrupted(self) -> bool:
        """Whether a signal ended the computation. Its handler has been called since and did not raise."""
        found = self._reason == "interrupt"
        self._reason = None if found else self._reason
        return found

    def look(self) -> None:
        """Ends the run where its time is over or it was cancelled; the watcher asks again and again."""
        deadline = self._stop.deadline
        try:
            cancelled = self._is_cancelled()
        except UserError:  # the one thread that looks at all runs must go on; `check` says it to the caller
            cancelled = True
        if cancelled:
            self.end("cancel")
        elif deadline is not None and time.monotonic() >= deadline:
            self.end("timeout")

    def _is_cancelled(self) -> bool:
        cancel = self._stop.cancel
        try:
            return cancel is not None and bool(cancel.is_set())
        except Exception as error:  # code of the caller's: a class in place of an object, a connection that is gone
            raise UserError(
                f"cancel cannot be asked ({type(error).__name__}: {one_line(error, 120)}); give a threading.Event"
            ) from error


class _Local(threading.local):
    running: Running | None = None


_local = _Local()
_NEVER = Running(Stop())


def current() -> Running:
    """The run that this thread is in; one that never ends early where it is in none."""
    return _local.running or _NEVER


class _Interrupts:
    """Tells a listener of Ctrl-C and SIGTERM, where Python handles them, while foreign code holds the main thread."""

    def __init__(self) -> None:
        self._process: int | None = None
        self._listener: Callable[[], None] | None = None
        self._passed_on = -1

    @contextmanager
    def told_to(self, listener: Callable[[], None]) -> Generator[None]:
        """Does nothing outside the main thread, which alone calls handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._start()
        before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        outer = self._listener, self._passed_on
        nested = before == self._write.fileno()
        self._listener, self._passed_on = listener, self._passed_on if nested else before
        try:
            yield
        finally:
            self._listener, self._passed_on = outer
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)

    def _start(self) -> None:
        if self._process == os.getpid():  # a forked child has the sockets, and not the thread
            return
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._process = os.getpid()
        threading.Thread(target=self._listen, args=(self._read,), name="lrkit-interrupts", daemon=True).start()

    def _listen(self, source: socket.socket) -> None:
        while numbers := source.recv(64):
            if self._passed_on >= 0:  # an event loop's own
                with suppress(OSError):
                    os.write(self._passed_on, numbers)
            listener = self._listener
            if listener is not None and not _ENDING.isdisjoint(numbers):
                listener()


_INTERRUPTS = _Interrupts()


class _Watcher:
    """One thread that looks at all runs with a time-out or a cancel. It keeps looking for a while after the last one,
    so that a question which follows soon costs no wake-up."""

    def __init__(self) -> None:
        self._process: int | None = None
        self._runs: set[Running] = set()
        self._wake = threading.Condition()
        self._parked = False

    def add(self, run: Running) -> None:
        self._runs.add(run)
        if self._process != os.getpid():  # a forked child has no such thread, and perhaps a lock that nobody frees
            self._process, self._wake, self._runs, self._parked = os.getpid(), threading.Condition(), {run}, False
            threading.Thread(target=self._look, name="lrkit-watcher", daemon=True).start()
        elif self._parked:
            with self._wake:
                self._wake.notify()

    def remove(self, run: Running) -> None:
        self._runs.discard(run)

    def _look(self) -> None:
        idle = 0
        while True:
            time.sleep(1 / _LOOKS_PER_SEC)
            runs = list(self._runs)
            idle = 0 if runs else idle + 1
            for run in runs:
                run.look()
            if idle > _PARKED_AFTER_SEC * _LOOKS_PER_SEC:
                with self._wake:
                    self._parked = True
                    self._wake.wait_for(lambda: bool(self._runs))
                    self._parked, idle = False, 0


_WATCHER = _Watcher()
