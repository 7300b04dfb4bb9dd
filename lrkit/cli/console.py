"""Where verbs print: consoles that take any text for what it is, and standard streams that take any character.

Names, answers and messages come from files of others. So there is no markup ("[/x]" is printed as it stands), control
characters do not reach the terminal, and a character that the output's encoding lacks is written as an escape.
"""

import os
import re
import sys
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.text import Text

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class PlainConsole(Console):
    """A console without markup that drops control characters, line ends and tabs aside."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's own; every text that is printed or put into a table passes here."""
        return super().render_str(printable(text), **options)


def printable(text: str) -> str:
    """Text of several lines without control characters, such as those that move a terminal's cursor."""
    return _CONTROL.sub("", text)


def out(**options: Any) -> Console:
    """Standard output; `options` are those of rich's Console."""
    plain: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False}
    return PlainConsole(**(plain | options))


def err(**options: Any) -> Console:
    """Standard error, for progress and notes."""
    return out(stderr=True, **options)


def make_streams_safe() -> None:
    """Characters that the encoding of standard output lacks become escapes, where they would end the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Writes what standard output still holds.

    Raises:
        OSError: it cannot be written.
    """
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def discard_output() -> None:
    """Lets go of what standard output could not write, so that Python does not try again while it shuts down."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
