"""Files of questions, cut into shards: JSONL as lrkit/data/jsonl.py reads it, and parquet. Torch-free.

Place in the pipeline: a name -> `open_lines` -> `LineFile` -> `spans`, read once by whoever leads the work -> `read`,
which every worker does for its own shards. No file is ever whole in memory.

A parquet file has the columns that a JSONL line has (image, question, steps, answer, id), or those of a published data
set: hub:FILE#COLUMNS. It belongs to the extra `data`.
"""

import glob
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lrkit.contract.sample import Sample
from lrkit.data.hub.hub_data import HubData
from lrkit.data.hub.row_samples import RowReader
from lrkit.data.hub.schemas import SCHEMAS, Schema
from lrkit.data.hub.stored_pictures import PictureFolders
from lrkit.data.jsonl import line_sample, numbered_lines
from lrkit.data.jsonl_line import KEYS, parse_line
from lrkit.data.jsonl_source import check_data_file
from lrkit.errors import DataError, clean, did_you_mean, one_line, os_sentence, require
from lrkit.files import sha256

PARQUET = (".parquet", ".pq")
Made = Sample | DataError
"""What a line holds: a sample, or why it is none."""
Look = Callable[[int, Made], None]
"""Told the number of each line and what it holds."""
_MOST_ROWS = 64
"""Rows of a parquet file that are Python values at one time."""


@dataclass(frozen=True)
class Span:
    """The lines of one shard, in one file."""

    first: int
    """Number of the first line, from 1."""
    lines: int
    """Blank ones too."""
    rows: int
    """Without blank ones."""
    start: int
    """Byte at which it begins; of a parquet file the row, from 0."""
    sha256: str
    """Of its content."""


class LineFile(ABC):
    """A file whose lines, or rows, are questions."""

    def __init__(self, path: Path, answered: bool) -> None:
        """Where lines need not be `answered`, steps and answer may be left out."""
        self.path, self.answered = path, answered

    @abstractmethod
    def spans(self, most: int, look: Look | None, limit: int | None) -> Iterator[Span]:
        """The file, up to `limit` lines of it, in pieces of `most` lines; `look` is told what each line holds.

        Raises:
            DataError: the file cannot be read.
        """

    @abstractmethod
    def read(self, span: Span) -> Iterator[tuple[int, Made]]:
        """(number, what it holds) of each line that is not blank.

        Raises:
            DataError: the file cannot be read, or is no longer what it was when it was cut.
        """

    def changed(self) -> DataError:
        """It is not the file any more that was cut."""
        return DataError(f"{clean(str(self.path))}: has changed while it was read; let it be, and start again")


class JsonLines(LineFile):
    """A JSONL file."""

    def spans(self, most: int, look: Look | None, limit: int | None) -> Iterator[Span]:
        lines, start = islice(numbered_lines(self.path), limit), 0
        while part := list(islice(lines, most)):
            for number, raw, size in part:
                if look is not None and (made := self._made(number, raw, size)) is not None:
                    look(number, made)
            rows = sum(not _is_blank(*line) for line in part)
            yield Span(part[0][0], len(part), rows, start, _digest(part))
            start += sum(size for _, _, size in part)

    def read(self, span: Span) -> Iterator[tuple[int, Made]]:
        held = list(islice(numbered_lines(self.path, span.start, span.first), span.lines))
        if _digest(held) != span.sha256:
            raise self.changed()
        for number, raw, size in held:
            if (made := self._made(number, raw, size)) is not None:
                yield number, made

    def _made(self, number: int, raw: bytes, size: int) -> Made | None:
        try:
            return line_sample(raw, size, self.path.parent, number, self.answered)
        except DataError as error:
            return error


def _digest(part: list[tuple[int, bytes, int]]) -> str:
    digest = hashlib.sha256()
    for _, raw, size in part:
        digest.update(raw if size == len(raw) else raw + str(size).encode())
    return digest.hexdigest()


def _is_blank(number: int, raw: bytes, size: int) -> bool:
    """As `line_sample` has it, without reading what the line says."""
    return size == len(raw) and not raw.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip()


class ParquetLines(LineFile):
    """A parquet file. Of its row groups one is in memory, in Arrow's format."""

    def __init__(self, path: Path, answered: bool, reader: RowReader | None) -> None:
        """`reader` makes samples of the columns of a published data set; None: of those of a JSONL line."""
        super().__init__(path, answered)
        self.reader = reader
        self._file: Any = None
        self._group: tuple[int, Any] = (-1, None)

    def spans(self, most: int, look: Look | None, limit: int | None) -> Iterator[Span]:
        try:
            digest = sha256(self.path)[0]
        except OSError as error:
            raise DataError(os_sentence(error, self.path)) from error
        rows: int = self._open().metadata.num_rows
        total = rows if limit is None else min(rows, limit)
        for start in range(0, total, most):
            count = min(most, total - start)
            for number, made in self._rows(start, count) if look is not None else ():
                assert look is not None
                look(number, made)
            yield Span(start + 1, count, count, start, digest)

    def read(self, span: Span) -> Iterator[tuple[int, Made]]:
        if span.start + span.lines > self._open().metadata.num_rows:
            raise self.changed()
        yield from self._rows(span.start, span.lines)

    def _open(self) -> Any:
        if self._file is None:
            parquet = require("pyarrow.parquet", "data")
            with self._reading():
                self._file = parquet.ParquetFile(self.path)
            self._check_names(list(self._file.schema_arrow.names))
        return self._file

    def _check_names(self, names: list[str]) -> None:
        if self.reader is not None:
            self.reader.check_names(names)
            return
        wanted = ("question", "steps", "answer") if self.answered else ("question",)
        if missing := [name for name in wanted if name not in names]:
            raise DataError(
                f"{clean(str(self.path))}: has no column {', '.join(missing)}; it has {one_line(', '.join(names), 300)}"
                f"{did_you_mean(missing[0], names)}; name its columns alike, or give hub:FILE#COLUMNS"
            )

    def _rows(self, start: int, count: int) -> Iterator[tuple[int, Made]]:
        """(number, what it holds) of `count` rows from row `start` on, over as many row groups as they lie in."""
        begins = 0
        for index in range(self._open().metadata.num_row_groups):
            length: int = self._file.metadata.row_group(index).num_rows
            low, high = max(start, begins), min(start + count, begins + length)
            for at in range(low, high, _MOST_ROWS):
                part = self._table(index).slice(at - begins, min(_MOST_ROWS, high - at))
                with self._reading():  # texts that are not UTF-8 are met here
                    rows = part.to_pylist()
                yield from ((at + nth + 1, self._made(at + nth + 1, row)) for nth, row in enumerate(rows))
            begins += length

    def _table(self, index: int) -> Any:
        if self._group[0] != index:
            names = None if self.reader is not None else [n for n in self._file.schema_arrow.names if n in KEYS]
            with self._reading():
                self._group = index, self._file.read_row_group(index, columns=names)
        return self._group[1]

    def _made(self, number: int, row: dict[str, Any]) -> Made:
        try:
            if self.reader is not None:
                return self.reader.sample(row, number)
            given = {name: value for name, value in row.items() if value is not None}
            line = json.dumps(given, default=lambda value: f"<{type(value).__name__}>").encode()
            made = parse_line(line, self.path.parent, number, self.answered)
            assert made is not None, "an object is no blank line"
            return made
        except DataError as error:
            return error

    def _reading(self) -> "_ParquetErrors":
        return _ParquetErrors(self.path)


class _ParquetErrors:
    """A context in which what the package raises of a file becomes one sentence about it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno:
            raise DataError(os_sentence(error, self.path)) from error
        if isinstance(error, Exception) and not isinstance(error, MemoryError | DataError):
            raise DataError(
                f"{clean(str(self.path))}: cannot be read as parquet ({one_line(error, 200)}); copy the file again"
            ) from error


def open_lines(name: str, answered: bool) -> tuple[LineFile, ...]:
    """The files that a name stands for: one, a pattern such as data/*.parquet, or hub:FILE#COLUMNS.

    Raises:
        DataError: there is none, or it is no file of lines.
    """
    if name.startswith("hub:"):
        return _published(name, answered)
    paths = sorted(map(Path, glob.glob(name))) if glob.has_magic(name) and "\0" not in name else [Path(name)]
    if not paths:
        raise DataError(f"{one_line(name, 300)}: no file matches; give a JSONL or a parquet file")
    for path in paths:
        check_data_file(path)
    return tuple(
        ParquetLines(path, answered, None) if path.suffix.lower() in PARQUET else JsonLines(path, answered)
        for path in paths
    )


def _published(name: str, answered: bool) -> tuple[LineFile, ...]:
    data = HubData.named(name)
    place, columns = data.place("train"), data.columns
    if not place.files or place.is_json:
        raise DataError(f"{one_line(name, 300)}: many lines are read from parquet files; give the path of these")
    schema = SCHEMAS[columns] if isinstance(columns, str) else Schema(columns)
    found: list[LineFile] = []
    for path in place.files:
        folders = PictureFolders(data.pictures or path.parent, schema.folders)
        reader = RowReader(schema, folders, path, data.steps, data.max_steps)
        found.append(ParquetLines(path, answered, reader))
    return tuple(found)
