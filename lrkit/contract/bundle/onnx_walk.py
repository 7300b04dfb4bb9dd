"""Finds the files that an ONNX file would open beside itself, its external weights, without the package onnx.
Torch-free.

Place in the pipeline: bundle_files.py asks before ONNX Runtime opens a program, because ONNX Runtime reads every file
that the program names, whether bundle.json lists it or not.

The file is walked as protobuf on the wire, message by message, into every place where the format allows a tensor:
graphs and the graphs in their nodes, functions, training graphs, sparse tensors. Weights are stepped over, not read.
Field numbers are those of onnx.proto3.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lrkit.errors import BundleError, os_sentence

# Kind of message -> number of a field -> kind of the message in it.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_OPERATOR, _KEY, _VALUE = 4, 1, 2
_MAX_DEPTH = 100
"""As deep as protobuf itself reads."""


@dataclass(frozen=True)
class Mention:
    """What a program names."""

    what: str
    """location: a file of external weights; operator: the type of a node."""
    text: str


class _Damaged(ValueError):
    """Not protobuf, or cut off."""


def mentions(path: Path) -> Iterator[Mention]:
    """Every location of external data and every node's operator in an ONNX file.

    Raises:
        BundleError: it cannot be read, or is no ONNX file.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield from _walk(content)
    except _Damaged as error:
        raise BundleError(f"{path}: is no ONNX file ({error}); copy the bundle again") from error
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        reason = os_sentence(error, path) if isinstance(error, OSError) else f"{path}: is empty; copy the bundle again"
        raise BundleError(reason) from error


def _walk(content: mmap.mmap) -> Iterator[Mention]:
    waiting: list[tuple[str, int, int, int]] = [("model", 0, len(content), 0)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise _Damaged(f"its graphs are nested more than {_MAX_DEPTH} deep")
        below = _MESSAGES[kind]
        key, value = b"", b""
        for field, first, last in _fields(content, start, end):
            if field in below:
                waiting.append((below[field], first, last, depth + 1))
            elif kind == "node" and field == _OPERATOR:
                yield Mention("operator", content[first:last].decode("utf-8", "replace"))
            elif kind == "entry" and field == _KEY:
                key = content[first:last]
            elif kind == "entry" and field == _VALUE:
                value = content[first:last]
        if kind == "entry" and key == b"location":
            yield Mention("location", value.decode("utf-8", "replace"))


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, first byte, byte after the last) of each field that holds bytes."""
    while at < end:
        tag, at = _varint(content, at, end)
        if tag >> 32:  # protobuf would drop what is above
            raise _Damaged("it has a field of no number")
        kind = tag & 7
        if kind == 2:
            size, at = _varint(content, at, end)
            if size > end - at:
                raise _Damaged("it is cut off")
            yield tag >> 3, at, at + size
            at += size
        elif kind == 0:
            _, at = _varint(content, at, end)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:  # groups, which ONNX never had
            raise _Damaged(f"it has a field of wire type {kind}")
    if at != end:
        raise _Damaged("it is cut off")


def _varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """(number, byte after it)"""
    number = shift = 0
    while at < end:
        byte = content[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise _Damaged("it has a number of more than 64 bits")
    raise _Damaged("it is cut off")
