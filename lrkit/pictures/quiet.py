"""Keeps the decoders' own messages off the screen: Pillow's warnings and log, and what libtiff writes to standard
error.

Place in the pipeline: `load_image` decodes files within `quiet()`. lrkit says in a sentence of its own what matters of
them.
"""

import ctypes
import logging
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from PIL import Image

_lock = threading.Lock()
_users = 0
_undo: list[Any] = []


@contextmanager
def quiet() -> Generator[None]:
    """No messages of Pillow or libtiff in here.

    Python's filters and libtiff's handlers belong to all threads: the first thread that comes changes them and the last
    one that goes puts them back, so that threads do not restore each other's.
    """
    global _users
    with _lock:
        if _users == 0:
            _silence()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                while _undo:
                    _undo.pop()()


def _silence() -> None:
    # Pillow logs some refusals; without any handler, Python writes them to standard error.
    logger, handler = logging.getLogger("PIL"), logging.NullHandler()
    logger.addHandler(handler)
    _undo.append(lambda: logger.removeHandler(handler))
    filters = warnings.catch_warnings()
    filters.__enter__()
    _undo.append(lambda: filters.__exit__(None, None, None))
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    for set_handler in _libtiff_setters():
        before = set_handler(None)
        _undo.append(lambda set_handler=set_handler, before=before: set_handler(before))


@cache
def _libtiff_setters() -> tuple[Any, ...]:
    """TIFFSetErrorHandler and TIFFSetWarningHandler of the libtiff that Pillow uses; none where they are not found."""
    found: list[Any] = []
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(Image.core.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.restype, setter.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
            found.append(setter)
    return tuple(found)
