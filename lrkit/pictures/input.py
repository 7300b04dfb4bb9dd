"""What callers hand over as a picture: paths, encoded files in memory, open files, arrays. Torch-free.

Place in the pipeline: `Reasoner.ask` -> `as_pictures` -> `read_source` -> load.py, which decodes.

Nothing is ever fetched: an address or a data URI is refused. What was given is never printed back whole.
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import IO, Any

import numpy as np
from PIL import Image

from lrkit.errors import CapacityError, DataError, one_line, os_sentence
from lrkit.files import NotOrdinaryError, open_ordinary

ImageSource = Image.Image | os.PathLike[str] | str | bytes | bytearray | memoryview | np.ndarray[Any, Any] | IO[bytes]
"""A picture in memory, the path of an image file, the bytes of one, an open one, or pixels as an array."""

MAX_FILE_BYTES = 128 << 20
"""Largest image file that is read."""

TAKEN = (
    "a path, the bytes of an image file, an open binary file, a PIL image, or a uint8 array of shape "
    "(height, width), (height, width, 3) or (height, width, 4)"
)
"""For messages."""

_ONE: tuple[type, ...] = (Image.Image, os.PathLike, str, bytes, bytearray, memoryview, np.ndarray)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def as_pictures(given: Any) -> tuple[ImageSource, ...]:
    """The pictures of one question: none (None), one, or several in a list, a tuple or another iterable.

    An open file becomes its bytes, so that it can be looked at again when a trace is drawn.

    Raises:
        DataError: something in it is no picture.
        CapacityError: an open file is above `MAX_FILE_BYTES`.
    """
    if given is None:
        return ()
    if _is_one(given):
        return (_held(given, "the picture"),)
    if isinstance(given, Iterable) and not isinstance(given, Mapping | set | frozenset):
        return tuple(_held(item, f"picture {number}") for number, item in enumerate(given, start=1))
    raise DataError(f"the picture is {kind_of(given)}; give {TAKEN}, or a list of those")


def _is_one(given: Any) -> bool:
    return isinstance(given, _ONE) or hasattr(given, "read")


def _held(given: Any, name: str) -> ImageSource:
    if not _is_one(given):
        raise DataError(f"{name} is {kind_of(given)}; give {TAKEN}")
    return _read_open(given, name) if hasattr(given, "read") and not isinstance(given, Image.Image) else given


def name_of(source: Any) -> str:
    """What a message calls a picture: its path, cut where it is long; never its content."""
    path = path_text(source)
    return "the picture" if path is None else path_line(path)


def path_text(source: Any) -> str | None:
    """The text of a path; None for what is none, such as a path of bytes or an object that fails to give its path."""
    try:
        path: Any = os.fspath(source)
    except Exception:  # __fspath__ is code of the caller's
        return None
    return str.__str__(path) if isinstance(path, str) else None


def read_source(source: Any, max_pixels: int) -> Image.Image | bytes:
    """A picture that is in memory already, or the content of an image file.

    Raises:
        DataError: it is no picture, or its file cannot be read.
        CapacityError: the file is above `MAX_FILE_BYTES`, or an array above `max_pixels`.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _refuse_large(_plain_bytes(source), "the picture")
    if isinstance(source, str | os.PathLike):
        return _read_file(_path(source))
    if hasattr(source, "read"):
        return _read_open(source, "the picture")
    raise DataError(f"the picture is {kind_of(source)}; give {TAKEN}")


def kind_of(value: Any) -> str:
    """The type of a value, for a message: "None", "a dict", "an int"."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def path_line(path: str | bytes) -> str:
    """A path as a message shows it; that of a picture in base64, which is no path at all, is cut soon."""
    text = os.fsdecode(path)
    return one_line(text, 60 if text[:5].lower() == "data:" else 300)


def _path(source: str | os.PathLike[str]) -> str:
    path = path_text(source)
    if path is None:
        raise DataError(f"the picture is {kind_of(source)} that gives no path as text; give the path as text")
    if not path or "\0" in path:
        raise DataError(
            f"the path of the picture {'holds a NUL character' if path else 'is empty'}; give a file's path"
        )
    return path


def _read_file(path: str) -> bytes:
    name = path_line(path)
    try:
        with open_ordinary(path) as file:
            return _refuse_large(file.read(MAX_FILE_BYTES + 1), name)
    except (OSError, UnicodeError) as error:
        raise DataError(f"{name}: {_why_not(path, error)}") from error


def _why_not(path: str, error: OSError | UnicodeError) -> str:
    """Why there is no file to read at `path`, and what to do."""
    if path[:5].lower() == "data:":
        return "is a data URI, not a path; decode what follows the comma (base64.b64decode) and give the bytes"
    if _ADDRESS.match(path):  # also as pathlib writes it, with one slash
        return "is an address, and nothing is fetched; download the picture and give its path"
    if isinstance(error, FileNotFoundError):
        return "there is no such image file; check the path"
    if isinstance(error, UnicodeError):
        return "the path holds half a surrogate pair, which is no character; check how it was made"
    if isinstance(error, NotOrdinaryError | IsADirectoryError):
        return f"is {error if isinstance(error, NotOrdinaryError) else 'a folder'}; give the path of an image file"
    return os_sentence(OSError(error.errno, error.strerror))  # without the name, which can be megabytes long


def _read_open(file: Any, name: str) -> bytes:
    """All of an open file, from its start where it can be rewound."""
    with suppress(Exception):  # a stream that cannot be rewound is read as it comes
        file.seek(0)
    try:
        content = file.read(MAX_FILE_BYTES + 1)
    except Exception as error:  # whatever a caller's own file object raises
        raise DataError(
            f"{name} is {kind_of(file)} that cannot be read ({type(error).__name__}); open it again"
        ) from error
    if not isinstance(content, bytes | bytearray | memoryview):
        raise DataError(f"{name} is {kind_of(file)} that gives {kind_of(content)}, not bytes; open the file with 'rb'")
    return _refuse_large(_plain_bytes(content), name)


def _plain_bytes(content: bytes | bytearray | memoryview) -> bytes:
    return content if isinstance(content, bytes) else bytes(content)


def _refuse_large(content: bytes, name: str) -> bytes:
    if len(content) > MAX_FILE_BYTES:
        raise CapacityError(
            f"{name}: has more than {MAX_FILE_BYTES >> 20} MiB, the most that is read of an image file; save it smaller"
        )
    return content


def refuse_pixels(width: int, height: int, most: int, name: str) -> None:
    """Before the pixels are copied or decoded.

    Raises:
        CapacityError: they are more than `most`.
    """
    if width * height > most:
        raise CapacityError(f"{name}: has {width} x {height} pixels, above the limit of {most} in all; make it smaller")


def _from_array(array: np.ndarray[Any, Any], max_pixels: int) -> Image.Image:
    """(height, width), (height, width, 1), 3 or 4 channels, uint8, as Pillow's L, RGB or RGBA."""
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        raise DataError(
            f"the picture is an array of {array.dtype} with shape {tuple(array.shape)}; give uint8 values 0 to 255 of "
            "shape (height, width), (height, width, 3) or (height, width, 4)"
        )
    refuse_pixels(array.shape[1], array.shape[0], max_pixels, "the picture")
    squeezed = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Image.fromarray(np.ascontiguousarray(squeezed))
