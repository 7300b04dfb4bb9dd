"""Shows on stderr how far `lrkit export` and `lrkit profile` are: bars on a terminal, a line now and then in a log."""

import time
from types import TracebackType
from typing import Self

from rich.progress import MofNCompleteColumn, ProgressColumn, TaskID, TimeElapsedColumn, TimeRemainingColumn

from lrkit.cli.shared.console import PlainTextColumn, bars, err, printable


class _Reporter:
    """Bars where stderr is a terminal, and a clock for the lines elsewhere."""

    def __init__(self, *columns: ProgressColumn, seconds_between_lines: float) -> None:
        self._bars = bars(*columns) if err().is_terminal else None
        self._seconds_between_lines = seconds_between_lines
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def note(self, text: str) -> None:
        """Says something that must not wait, whatever else is shown."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._say(text)

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        err(soft_wrap=True).print(f"{self._said - self._started:6.0f} s  {printable(text)}")

    def _say_sometimes(self, text: str) -> None:
        if time.monotonic() - self._said > self._seconds_between_lines:
            self._say(text)


class ExportProgress(_Reporter):
    """Call it with (what is going on, done, total); total 0 where it cannot be counted."""

    def __init__(self) -> None:
        super().__init__(PlainTextColumn("{task.fields[count]}"), TimeElapsedColumn(), seconds_between_lines=10.0)
        self._task: TaskID | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        count = f"{done} of {total}" if total else ""
        if self._bars is None:
            self._say_sometimes(f"{what} {count}".rstrip())
            return
        if self._task is None:
            self._task = self._bars.add_task(what, total=None, count="")
        self._bars.update(self._task, description=what, completed=done, total=total or None, count=count)


class ProfileProgress(_Reporter):
    """A `Watcher` of the measuring loop."""

    def __init__(self, answers: int) -> None:
        """`answers` is how often each case will be asked."""
        super().__init__(MofNCompleteColumn(), TimeRemainingColumn(), seconds_between_lines=20.0)
        self._answers = answers
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}

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
        else:
            self._say_sometimes(f"{sum(self._done.values())} answers; {case}: {self._done[case]} of {self._answers}")
