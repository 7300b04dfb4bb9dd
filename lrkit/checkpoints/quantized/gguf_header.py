"""The header of a GGUF file, read strictly: every number in it is held against the file's length before it is used.

lrkit reads it itself, as it does with safetensors: the file may be a stranger's, and the package gguf maps it and
trusts what it says. Format: https://github.com/ggml-org/ggml, "gguf", versions 2 and 3, little endian.

Place in the pipeline: gguf_weights.py takes tensors by name, gguf_blocks.py unpacks them.
"""

import math
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from lrkit.errors import CheckpointError, clean, os_sentence

MOST_TENSORS = 1 << 16
MOST_ENTRIES = 1 << 16
"""Of the metadata."""
LONGEST_NAME = 256
LONGEST_TEXT = 1 << 16
"""Of a text that is kept; longer ones, such as chat templates, are passed over."""
_AGAIN = "copy it again"
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Number of a type of metadata -> as struct has it."""


@dataclass(frozen=True)
class BlockType:
    """How a tensor's values lie: so many in a block of so many bytes."""

    name: str
    values: int
    num_bytes: int


TYPES: Mapping[int, BlockType] = {
    number: BlockType(name, values, size)
    for number, name, values, size in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 36), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (20, "IQ4_NL", 32, 18),
        (23, "IQ4_XS", 256, 136), (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8),
        (28, "F64", 1, 8), (30, "BF16", 1, 2),
    )
}  # fmt: skip
"""Types of tensors by their numbers; gguf_weights.py says which of them are read."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor in the file."""

    file: Path
    name: str
    kind: BlockType
    shape: tuple[int, ...]
    """Rows first, as elsewhere; the file has it the other way round."""
    start: int
    """First byte, counted from the beginning of the file."""
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself."""

    file: Path
    values: Mapping[str, int | float | bool | str]
    """Metadata by key, but for arrays and long texts."""
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Metadata and tensors, held against the file's length.

    Raises:
        CheckpointError: the file cannot be read, is no whole GGUF file, or holds tensors of unknown types.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path}: is no ordinary file; {_AGAIN}")
        with path.open("rb") as file:
            return _Reader(path, file, found.st_size).header()
    except OSError as error:
        raise CheckpointError(os_sentence(error, path)) from error


class _Reader:
    """Goes through the header from its beginning."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size, self.place = path, file, size, 0

    def header(self) -> GgufHeader:
        """See `read_gguf_header`."""
        if self.take(4) != b"GGUF":
            raise CheckpointError(f"{self.path}: is no GGUF file (it begins with other letters); {_AGAIN}")
        version = self.number("<I")
        if version not in (2, 3):
            raise CheckpointError(
                f"{self.path}: is GGUF of version {version} (or big endian), and lrkit reads 2 and 3; convert it again"
            )
        tensors = self.count("tensors", MOST_TENSORS)
        values = dict(filter(None, (self.entry() for _ in range(self.count("entries", MOST_ENTRIES)))))
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
            self.fail("alignment")
        infos = [self.info() for _ in range(tensors)]
        data = -(-self.place // alignment) * alignment
        return GgufHeader(self.path, values, self.placed(infos, data, alignment))

    def fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: is no whole GGUF file (damaged header: {what}); {_AGAIN}")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.size - self.place:
            self.fail("it ends within it")
        found = self.file.read(count)
        if len(found) != count:
            self.fail("it ends within it")
        self.place += count
        return found

    def skip(self, count: int) -> None:
        if count > self.size - self.place:
            self.fail("it ends within it")
        self.place += count
        self.file.seek(self.place)

    def number(self, kind: str) -> int:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def count(self, what: str, most: int) -> int:
        found = self.number("<Q")
        if found > most:
            self.fail(f"{found} {what}")
        return found

    def text(self, longest: int) -> str | None:
        """None for a longer one, which is passed over."""
        length = self.number("<Q")
        if length > longest:
            self.skip(length)
            return None
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a text is no UTF-8")

    def name(self) -> str:
        found = self.text(LONGEST_NAME)
        if found is None:
            self.fail("a name is too long")
        return found

    def entry(self) -> tuple[str, int | float | bool | str] | None:
        """One line of the metadata; None for what is not kept."""
        key, kind = self.name(), self.number("<I")
        if kind == _ARRAY:
            self.pass_over_array()
            return None
        if kind == _STRING:
            text = self.text(LONGEST_TEXT)
            return None if text is None else (key, text)
        if kind not in _NUMBERS:
            self.fail(f"metadata of type {kind}")
        return key, self.number(_NUMBERS[kind])

    def pass_over_array(self) -> None:
        kind, length = self.number("<I"), self.number("<Q")
        if kind in _NUMBERS:
            return self.skip(length * struct.calcsize(_NUMBERS[kind]))
        if kind != _STRING or length > (self.size - self.place) // 8:
            self.fail(f"an array of {length} of type {kind}")
        for _ in range(length):
            self.skip(self.number("<Q"))

    def info(self) -> tuple[str, BlockType, tuple[int, ...], int]:
        """(name, type, shape with rows first, first byte behind the header) of one tensor."""
        name, axes = self.name(), self.number("<I")
        if not 1 <= axes <= 4:
            self.fail(f"a tensor of {axes} axes")
        shape = tuple(self.number("<Q") for _ in range(axes))
        kind, start = self.number("<I"), self.number("<Q")
        if kind not in TYPES:
            raise CheckpointError(
                f"{self.path}: {clean(name)[:80]} is of type number {kind}, which lrkit does not know; quantize the "
                "model as Q4_0, Q4_1 or Q8_0"
            )
        if not all(0 < length < 1 << 40 for length in shape) or shape[0] % TYPES[kind].values:
            self.fail(f"shape of {clean(name)[:80]}")
        return name, TYPES[kind], shape[::-1], start

    def placed(
        self, infos: list[tuple[str, BlockType, tuple[int, ...], int]], data: int, alignment: int
    ) -> dict[str, GgufTensor]:  # fmt: skip
        """The tensors lie one behind the other, within the file."""
        found: dict[str, GgufTensor] = {}
        end = data
        for name, kind, shape, offset in sorted(infos, key=lambda info: info[3]):
            size = math.prod(shape) // kind.values * kind.num_bytes
            if name in found:
                self.fail(f"{clean(name)[:80]} twice")
            if data + offset != -(-end // alignment) * alignment:
                self.fail(f"place of {clean(name)[:80]}")
            end = data + offset + size
            if end > self.size:
                raise CheckpointError(f"{self.path}: ends within {clean(name)[:80]}; {_AGAIN}")
            found[name] = GgufTensor(self.path, name, kind, shape, data + offset, size)
        if self.size - end >= alignment:
            raise CheckpointError(f"{self.path}: has {self.size} bytes where {end} belong; {_AGAIN}")
        return found
