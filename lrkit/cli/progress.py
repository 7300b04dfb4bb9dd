"""How far `lrkit profile` is, on stderr: bars on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 20.0


class ProfileProgress:
    """A `Watcher` of the measuring loop."""

    def __init__(self, answers: int) -> None:
        """`answers` is how often each case will be asked."""
        self._answers = answers
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._started = self._said = time.monotonic()

    def __enter__(self) -> "ProfileProgress":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def stage(self, text: str) -> None:
        """Says what begins now."""
        if self._bars is not None:
            self._bars.console.print(text, style="dim")
        else:
            self._say(text)

    def answered(self, case: str) -> None:
        """Counts an answer of that case."""
        self._done[case] = self._done.get(case, 0) + 1
        if self._bars is not None:
            if case not in self._tasks:
                self._tasks[case] = self._bars.add_task(case, total=self._answers)
            self._bars.advance(self._tasks[case])
        elif time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._say(f"{sum(self._done.values())} answers; {case}: {self._done[case]} of {self._answers}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        print(f"{self._said - self._started:6.0f} s  {text}", file=sys.stderr, flush=True)
