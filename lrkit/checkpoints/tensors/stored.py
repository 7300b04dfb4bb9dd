"""Safetensors files without torch: their headers read strictly, their values in numpy, and a search for values that are
no numbers.

Place in the pipeline: whole_weights.py holds the headers against what a checkpoint must have; `lrkit validate` and
the loader look for NaN and infinity.
"""

import json
import math
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lrkit.errors import CheckpointError, clean, os_sentence
from lrkit.files import parse_json

MAX_HEADER_BYTES = 100_000_000
"""A header larger than this is none; the limit is that of the safetensors package."""
_AGAIN = "copy it again"
_LFS = b"version "  # the first bytes of a pointer of Git LFS, which a clone without LFS holds in place of a file
_READ_AT_ONCE = 1 << 22  # values
_BLOCK = 1 << 18  # bytes; larger ones do not stay in the processor's cache and take twice as long

BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4,
    "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one value, by the names of safetensors."""
FLOATS = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2"), "F64": np.dtype("<u8")}
"""What lrkit reads as weights, and the whole numbers of that width."""
WHOLE_NUMBERS = {"I8": np.dtype("i1"), "U8": np.dtype("u1"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
"""What lrkit reads as integers of quantized weights."""
_EXPONENT = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80, "F64": 0x7FF0000000000000}


class Weight(Protocol):
    """One weight of a checkpoint, however its file holds it: floats (`StoredTensor`), or integers with scales
    (lrkit/checkpoints/quantized/packed_weight.py)."""

    @property
    def file(self) -> Path: ...
    @property
    def name(self) -> str:
        """As the file has it."""
        ...

    @property
    def dtype(self) -> str:
        """Of what `read` gives, as safetensors calls it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self) -> np.ndarray:
        """Its values as float32, in an array of their own. Raises `CheckpointError`."""
        ...

    def read_row(self, index: int) -> np.ndarray:
        """One row of a matrix, as `read` gives it."""
        ...

    def odd_value(self) -> str:
        """NaN or infinity, where it holds such a value; empty otherwise. Raises `CheckpointError`."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file."""

    file: Path
    name: str
    dtype: str
    """As safetensors calls it: F32, BF16, ..."""
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the beginning of the file."""
    num_bytes: int

    def read(self) -> np.ndarray:
        """Its values as float32 (F64 as float64), in an array of their own.

        Raises:
            CheckpointError: it is no float tensor, or the file cannot be read.
        """
        if self.dtype not in FLOATS:
            raise CheckpointError(
                f"{self.file}: {self.name} is of type {self.dtype}; lrkit reads {', '.join(FLOATS)}, so give weights "
                "that are not quantized"
            )
        # Block by block: the whole of a half-precision matrix beside its floats would be more than half as much again.
        count, kind = math.prod(self.shape), FLOATS[self.dtype]
        values = np.empty(count, np.float64 if self.dtype == "F64" else np.float32)
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                for first in range(0, count, _READ_AT_ONCE):
                    block = np.fromfile(file, kind, min(_READ_AT_ONCE, count - first))
                    if len(block) != min(_READ_AT_ONCE, count - first):
                        raise CheckpointError(f"{self.file}: ends within {clean(self.name)}; {_AGAIN}")
                    values[first : first + len(block)] = as_float(block, self.dtype)
        except OSError as error:
            raise CheckpointError(os_sentence(error, self.file)) from error
        return values.reshape(self.shape)

    def read_row(self, index: int) -> np.ndarray:
        """One row of a matrix, as `read` gives it."""
        step = self.num_bytes // self.shape[0]
        row = replace(self, shape=self.shape[1:], start=self.start + index * step, num_bytes=step)
        return row.read()

    def whole_numbers(self) -> np.ndarray:
        """Its values, where they are integers of one of `WHOLE_NUMBERS`. Raises `CheckpointError`."""
        assert self.dtype in WHOLE_NUMBERS, f"{self.name} is {self.dtype}"
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                values = np.fromfile(file, WHOLE_NUMBERS[self.dtype], math.prod(self.shape))
        except OSError as error:
            raise CheckpointError(os_sentence(error, self.file)) from error
        if len(values) != math.prod(self.shape):
            raise CheckpointError(f"{self.file}: ends within {clean(self.name)}; {_AGAIN}")
        return values.reshape(self.shape)

    def odd_value(self) -> str:
        """See `Weight`; of what is no float, none."""
        return _not_finite(self) if self.dtype in FLOATS else ""


def as_float(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Whole numbers of a safetensors type as the floats that they stand for; bfloat16 becomes float32."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    return raw.view(np.float32 if dtype == "F32" else np.float64)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, from its header alone: types, shapes and places held against the file's length.

    Raises:
        CheckpointError: the file cannot be read or is no whole safetensors file.
    """
    size, length, raw = _raw_header(path)
    header = parse_json(raw, f"{path}: the header of the safetensors file", CheckpointError)
    header.pop("__metadata__", None)
    tensors = {name: _entry(path, name, values, 8 + length) for name, values in header.items()}
    _check_places(path, tensors, 8 + length, size)
    return tensors


def read_notes(path: Path) -> dict[str, Any]:
    """The texts by name that stand beside the tensors in a file's header, `__metadata__`; empty without any. Raises as
    `read_header`."""
    _, _, raw = _raw_header(path)
    notes = parse_json(raw, f"{path}: the header of the safetensors file", CheckpointError).get("__metadata__")
    return notes if isinstance(notes, dict) else {}


def _raw_header(path: Path) -> tuple[int, int, str]:
    """(bytes of the file, bytes of the header, the header's text)."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path}: is no ordinary file; {_AGAIN}")
        size = found.st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if first == _LFS:
                raise CheckpointError(
                    f"{path}: is a pointer of Git LFS, not the weights; put the file itself there (git lfs pull)"
                )
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(f"{path}: is no whole safetensors file (damaged header); {_AGAIN}")
            return size, length, file.read(length).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is no whole safetensors file (damaged header); {_AGAIN}") from error
    except OSError as error:
        raise CheckpointError(os_sentence(error, path)) from error


def _entry(path: Path, name: str, values: Any, data: int) -> StoredTensor:
    """One line of the header; `data` is where the values begin."""
    fault = f"{path}: the header says nonsense of {clean(name)!r}"
    if not isinstance(values, dict) or values.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{fault} (keys); {_AGAIN}")
    dtype, shape, places = values["dtype"], values["shape"], values["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise CheckpointError(f"{fault} (type {clean(json.dumps(dtype))[:40]}); {_AGAIN}")
    if not _whole_numbers(shape) or not _whole_numbers(places) or len(places) != 2:
        raise CheckpointError(f"{fault} (shape or place); {_AGAIN}")
    num_bytes = math.prod(shape) * BYTES[dtype]
    if places[1] - places[0] != num_bytes:
        raise CheckpointError(
            f"{path}: {clean(name)} takes {places[1] - places[0]} bytes where shape {tuple(shape)} of {dtype} needs "
            f"{num_bytes}; {_AGAIN}"
        )
    return StoredTensor(path, name, dtype, tuple(shape), data + places[0], num_bytes)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _check_places(path: Path, tensors: dict[str, StoredTensor], data: int, size: int) -> None:
    """The tensors lie one behind the other, from the header to the file's end."""
    end = data
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.num_bytes)):
        if tensor.start != end:
            what = "overlaps with another" if tensor.start < end else "leaves a gap before it"
            raise CheckpointError(f"{path}: {clean(tensor.name)} {what}; {_AGAIN}")
        end += tensor.num_bytes
    if end != size:
        raise CheckpointError(f"{path}: has {size} bytes where {end} belong; {_AGAIN}")


def first_not_finite(tensors: Iterable[Weight]) -> str | None:
    """The first tensor that holds NaN or infinity, as one sentence; None where all values are numbers.

    Values are read in small blocks, so that a large file takes no memory. Tensors that are no floats pass.

    Raises:
        CheckpointError: a file cannot be read.
    """
    for tensor in tensors:
        if seen := tensor.odd_value():
            return (
                f"{tensor.file}: {clean(tensor.name)} holds {seen}, so every answer would be nonsense; train again "
                "from a checkpoint before it, with a lower learning rate"
            )
    return None


def _not_finite(tensor: StoredTensor) -> str:
    kind, exponent = FLOATS[tensor.dtype], _EXPONENT[tensor.dtype]
    mask, left = kind.type(exponent), math.prod(tensor.shape)
    buffer = np.empty(min(left, _BLOCK // kind.itemsize), kind)
    exponents = np.empty_like(buffer)
    try:
        with tensor.file.open("rb") as file:
            file.seek(tensor.start)
            while left:
                block = buffer[: min(left, len(buffer))]
                if file.readinto(block.view(np.uint8).data) != block.nbytes:
                    raise CheckpointError(f"{tensor.file}: ends within {clean(tensor.name)}; {_AGAIN}")
                left -= len(block)
                if bool((np.bitwise_and(block, mask, out=exponents[: len(block)]) == mask).any()):
                    bad = as_float(block[(block & mask) == mask], tensor.dtype)
                    return "NaN" if bool(np.isnan(bad).any()) else "infinity"
    except OSError as error:
        raise CheckpointError(os_sentence(error, tensor.file)) from error
    return ""


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Are two tensors equal byte for byte, of one shape and type? They are read in blocks.

    Raises:
        CheckpointError: a file cannot be read.
    """
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    try:
        with one.file.open("rb") as file, other.file.open("rb") as other_file:
            file.seek(one.start)
            other_file.seek(other.start)
            for start in range(0, one.num_bytes, _BLOCK):
                size = min(_BLOCK, one.num_bytes - start)
                if file.read(size) != other_file.read(size):
                    return False
    except OSError as error:
        raise CheckpointError(os_sentence(error, one.file)) from error
    return True


def is_plain_name(name: str) -> bool:
    """Is it the name of a file in the folder itself, and no path to elsewhere?"""
    return bool(name) and name not in (".", "..") and not any(mark in name for mark in ("/", "\\", "\0", os.sep))
