"""How far `lrkit export` is, on stderr: a bar on a terminal, a line every few seconds in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_SECONDS_BETWEEN_LINES = 10.0


class ExportProgress:
    """Call it with (what is going on, done, total); total 0 where it cannot be counted."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn(),
        )  # fmt: skip
        console = Console(stderr=True)
        self._bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._started = self._said = time.monotonic()

    def __enter__(self) -> "ExportProgress":
        if self._bars is not None:
            self._task = self._bars.add_task("reading", total=None, count="")
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        count = f"{done} of {total}" if total else ""
        if self._bars is not None:
            self._bars.update(self._task, description=what, completed=done, total=total or None, count=count)
        elif time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(f"{self._said - self._started:6.0f} s  {what} {count}".rstrip(), file=sys.stderr, flush=True)
