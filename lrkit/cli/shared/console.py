"""Where verbs print: consoles that print any text as it is, and standard streams that take any character.

Names, answers and messages come from files of others. So there is no markup ("[/x]" is printed as it stands), control
characters do not reach the terminal, and a character that the output's encoding lacks is written as an escape.
"""

import errno
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from lrkit.errors import FileError

# Line ends and tabs stay; changes of direction, which could show a name backwards, go with the rest.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NEVER_FAIL = {"replace", "ignore", "backslashreplace", "xmlcharrefreplace", "namereplace"}
STDOUT = Path("-")
"""What `--json` takes for standard output."""


class PlainConsole(Console):
    """A console without markup that drops control characters, line ends and tabs aside."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's own; every text that is printed or put into a table passes here."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's own, but a line of text is not broken at the terminal's width: a path can be copied whole."""
        if all(isinstance(each, str) for each in objects):
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)


def printable(text: str) -> str:
    """Text of several lines without control characters, such as those that move a terminal's cursor."""
    return _CONTROL.sub("", text)


def out(**options: Any) -> Console:
    """Standard output; `options` are those of rich's Console."""
    return _console("stdout", options)


def err(**options: Any) -> Console:
    """Standard error, for progress and notes."""
    return _console("stderr", options)


def _console(name: str, options: dict[str, Any]) -> Console:
    plain: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False, "file": _streams[name]}
    return PlainConsole(**(plain | options))


def beside_json(json_file: Path | None, **options: Any) -> Console:
    """Where tables go: standard output, or standard error where `--json -` has the other for itself."""
    return err(**options) if json_file == STDOUT else out(**options)


class PlainTextColumn(TextColumn):
    """A column of a progress bar that takes names for what they are."""

    def __init__(self, text_format: str = "{task.description}") -> None:
        super().__init__(text_format, markup=False)

    def render(self, task: Task) -> Text:
        return Text(printable(self.text_format.format(task=task)), style=self.style, justify=self.justify)


def bars(*columns: ProgressColumn, transient: bool = True) -> Progress:
    """Progress bars on standard error, where that is a terminal: description, bar, and then `columns`."""
    console = err()
    shown = (PlainTextColumn(), BarColumn(), *columns)
    return Progress(*shown, console=console, transient=transient, disable=not console.is_terminal)


class _Stream:
    """A standard stream for consoles. What it refuses (a full disk, a reader that went away) is kept until the end of
    the verb: the work goes on, and its files are written."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        self._attempt(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(lambda stream: stream.flush())

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def _stream(self) -> Any:
        """As it is now: tests put another in its place, and so do the progress bars, which write here themselves."""
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)

    def _attempt(self, step: Callable[[Any], object]) -> None:
        stream = self._stream
        if self.failure is not None:
            return
        try:
            if stream is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            step(stream)
        except OSError as error:
            self.failure = error


_streams = {"stdout": _Stream("stdout"), "stderr": _Stream("stderr")}


def make_streams_safe() -> None:
    """Characters that the encoding of standard output lacks become escapes, where they would end the program; closed
    streams are filled, so that no file of lrkit's gets their number and with it the words of a library."""
    for stream in _streams.values():
        stream.failure = None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors not in _NEVER_FAIL:
            reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Writes what standard output still holds.

    Raises:
        OSError: it cannot be written, or could not be written before.
    """
    output = _streams["stdout"]
    if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
        output.flush()
    if output.failure is not None:
        failure, output.failure = output.failure, None
        if failure.errno == errno.EBADF:
            raise FileError("standard output is closed and its text is lost; leave it open, or send it to a file")
        raise failure


def discard_output() -> None:
    """Lets go of what standard output could not write, so that Python does not try again while it shuts down."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
