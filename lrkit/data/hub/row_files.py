"""Opens what a name of a data set stands for: JSON files, parquet files, folders, or a data set of the hub. Torch-free.

Place in the pipeline: `HubData` -> `Rows` -> those of one split, each with its number, pictures not decoded.

JSON is read here, whole, by the base install. All else takes the package `datasets` (extra `data`), whose copy of the
rows on disk makes any of them quick to reach; a stream reads them in order and keeps none. Only a name of the form
ORG/NAME that is no file or folder here leads to the network.
"""

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lrkit.data.hub.datasets_package import about, load, opening
from lrkit.data.hub.schemas import KEY, Row
from lrkit.errors import DataError, clean, os_sentence
from lrkit.files import load_strict, read_text, sha256
from lrkit.pretrained import is_hub_id

MAX_JSON = 4 << 30
"""Bytes of a JSON file that is read whole."""
_JSON, _LINES, _PARQUET = (".json",), (".jsonl", ".ndjson"), (".parquet", ".pq")
_WANTED = "give ORG/NAME of the hub, a .parquet, .json or .jsonl file, a pattern such as data/*.parquet, or a folder"


@dataclass(frozen=True)
class Place:
    """What a name stands for."""

    name: str
    files: tuple[Path, ...] = ()
    """Of parquet or JSON; empty for a folder and for a data set of the hub."""
    folder: Path | None = None
    config: str | None = None
    """Name of one of the configurations of a folder or a data set of the hub."""
    revision: str | None = None

    @property
    def is_json(self) -> bool:
        return bool(self.files) and self.files[0].suffix.lower() in _JSON + _LINES

    @property
    def base(self) -> Path:
        """Where relative paths of pictures begin."""
        return self.files[0].parent if self.files else self.folder or Path(".")

    def label(self, split: str) -> Path:
        """What messages call it."""
        return self.files[0] if len(self.files) == 1 else Path(clean(self.name)) / ("" if self.files else split)

    def digests(self, split: str) -> dict[str, str]:
        """Part of the rows of a split -> digest: of each local file its own, of the hub that of the revision."""
        files = self.files or (() if self.folder is None else _files_of(self, split))
        if files:
            return {path.name: _digest(path) for path in files}
        names = about(self, split)
        return {"revision": hashlib.sha256(json.dumps(names).encode()).hexdigest()}


def place_of(name: str, config: str | None = None, revision: str | None = None) -> Place:
    """Looks for what a name stands for, here first.

    Raises:
        DataError: nothing here has the name, and it is none of the hub's; or files of several kinds match.
    """
    path = Path(name)
    try:
        found = tuple(sorted(map(Path, glob.glob(name, recursive=True)))) if glob.has_magic(name) else ()
        there, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise DataError(f"{clean(name)[:200]}: is no path of a data set; {_WANTED}") from error
    if is_folder:
        return Place(name, folder=path, config=config)
    files = (path,) if there else found
    if files:
        return _of_files(name, files, config, revision)
    if glob.has_magic(name) or not is_hub_id(name) or path.suffix.lower() in _JSON + _LINES + _PARQUET:
        raise DataError(f"{clean(name)}: there is no such file or folder; {_WANTED}")
    return Place(name, config=config, revision=revision)


def _of_files(name: str, files: tuple[Path, ...], config: str | None, revision: str | None) -> Place:
    kinds = {path.suffix.lower() for path in files}
    if not any(kinds <= set(group) for group in (_JSON + _LINES, _PARQUET)):
        raise DataError(f"{clean(name)}: names files ending in {', '.join(sorted(kinds)) or 'nothing'}; {_WANTED}")
    if not all(path.is_file() for path in files):
        raise DataError(f"{clean(name)}: is no ordinary file; {_WANTED}")
    if config is not None or revision is not None:
        raise DataError(f"{clean(name)}: a file has no config and no revision; leave them out")
    return Place(name, files)


def _files_of(place: Place, split: str) -> tuple[Path, ...]:
    """The local files of a folder's split."""
    assert place.folder is not None
    if (place.folder / "state.json").is_file():
        return tuple(sorted(place.folder.glob("*.arrow")))
    return tuple(sorted(Path(name) for name in about(place, split) if Path(name).is_file()))


def _digest(path: Path) -> str:
    try:
        return sha256(path)[0]
    except OSError as error:
        raise DataError(os_sentence(error, path)) from error


class Rows:
    """The rows of one split, in order."""

    def __init__(self, place: Place, split: str, streaming: bool) -> None:
        """Raises `DataError` where it cannot be opened, or is a stream of JSON."""
        self.place, self.split, self.streaming = place, split, streaming
        self.dataset: Any = None
        """Of the package `datasets`, in Arrow's format or streaming; None for JSON."""
        if place.is_json and streaming:
            raise DataError(f"{clean(place.name)}: JSON files are read whole; leave streaming out, or write parquet")
        if not place.is_json:
            self.dataset = load(place, split, streaming)

    @cached_property
    def _json(self) -> list[Row]:
        rows = [row for path in self.place.files for row in read_rows(path)]
        return rows

    def names(self) -> list[str]:
        """Of all columns."""
        if self.dataset is None:
            return list(dict.fromkeys(name for row in self._json for name in row))
        return list(self.dataset.column_names or ())

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        """(number from 1, row). Raises `DataError` where the data are damaged."""
        return enumerate(self._rows(), start=1)

    def _rows(self) -> Iterable[Row]:
        if self.dataset is None:
            yield from self._json
            return
        parts = iter(self.dataset if self.streaming else self.dataset.iter(batch_size=64))
        while True:
            with opening(self.place.name):
                part = next(parts, None)
                if part is None:
                    return
                rows: list[Row] = [part] if self.streaming else part.to_pylist()
            yield from rows


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON file: a list of objects, an object of objects whose key becomes the column `KEY`, or lines.

    Raises:
        DataError: it is neither, or cannot be read.
    """
    text = read_text(path, DataError, max_bytes=MAX_JSON)
    try:
        if path.suffix.lower() in _LINES:
            values: Any = [load_strict(line) for line in text.splitlines() if line.strip()]
        else:
            values = load_strict(text)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise DataError(f"{clean(str(path))}: is not valid JSON ({where}); copy the file again") from error
    except ValueError as error:
        raise DataError(f"{clean(str(path))}: {error}; write plain rows") from error
    if isinstance(values, dict) and values and all(isinstance(value, dict) for value in values.values()):
        values = [{**value, KEY: key} for key, value in values.items()]
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise DataError(f"{clean(str(path))}: holds no rows; write a list of objects, or an object of objects by key")
    return values
