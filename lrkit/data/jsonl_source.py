"""JSONL files as a data set: in shuffled passes for training, whole for evaluation.

Place in the pipeline: sources.py's table -> `JsonlData` -> `Passes` -> curriculum -> batches.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lrkit.contract.sample import Sample
from lrkit.data.expected import Expected
from lrkit.data.jsonl import Advance, JsonlScan, check_jsonl, read_jsonl
from lrkit.data.passes import Passes
from lrkit.data.scans import Split
from lrkit.data.sources import DataSource, Plan, set_names
from lrkit.errors import DataError, one_line, os_sentence
from lrkit.files import sha256
from lrkit.runtime.encode.processor import Processor


class JsonlData(DataSource):
    """Your own data: one JSON object per line with image, question, steps, answer."""

    kind: Literal["jsonl"]
    """JSONL files."""
    train: Path
    """Training lines."""
    validation: Path | None = None
    """Validation lines; left out: no accuracy is measured."""

    @classmethod
    def samples(cls, name: str, count: int | None, split: Split, seed: int) -> list[Sample]:
        path = Path(name)
        try:
            there = path.is_file()
        except (OSError, ValueError):  # longer than systems take, or with a NUL character
            there = False
        if not there:
            known = ", ".join(set_names())
            raise DataError(
                f"{one_line(name, 300)} is no file; give a JSONL file or one of {known}, or hub:NAME#COLUMNS"
            )
        if path.suffix.lower() in (".parquet", ".pq"):
            raise DataError(f"{one_line(name, 300)} is a parquet file; write hub:{one_line(name, 300)}#COLUMNS")
        return read_jsonl(path)[:count]

    def open(self, seed: int, stages: Sequence[Plan]) -> Passes:
        digests: dict[str, str] = {}
        problems: list[str] = []
        read: dict[str, list[Sample]] = {}
        for part, path in self.files().items():
            try:
                check_data_file(path)
                digests[part] = sha256(path)[0]
                read[part] = [replace(s, info={**s.info, "file": path}) for s in read_jsonl(path)]
            except (DataError, OSError) as error:
                problems.append(str(error) if isinstance(error, DataError) else os_sentence(error, path))
        if problems:
            raise DataError("\n".join(problems))
        source = Passes(read["train"], read.get("validation", []), seed, digests["train"], digests)
        source.check(stages, self.train)
        return source

    @property
    def validates(self) -> bool:
        return self.validation is not None

    def expected(self) -> Expected | None:
        return None if self.train.is_file() else Expected()

    def files(self) -> dict[str, Path]:
        return {"train": self.train} | ({} if self.validation is None else {"validation": self.validation})

    def scan(self, path: Path, processor: Processor | None = None, advance: Advance | None = None) -> JsonlScan:
        check_data_file(path)
        return check_jsonl(path, processor, advance)


def check_data_file(path: Path) -> None:
    """It is an ordinary file: data are read more than once, which a pipe does not allow.

    Raises:
        DataError: it is not there, or something else.
    """
    try:
        ordinary = path.is_file()
        there = ordinary or path.exists()
    except (OSError, ValueError) as error:
        raise DataError(os_sentence(error, path)) from error
    if not there:
        raise DataError(f"{path}: there is no such data file; check the path")
    if not ordinary:
        seen = "a folder" if path.is_dir() else "a pipe or a device"
        raise DataError(f"{path}: is {seen}; give the path of a JSONL file")
