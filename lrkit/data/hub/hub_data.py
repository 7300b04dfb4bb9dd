"""Published data sets as a data set of lrkit: of the hub by name, or parquet, JSON and folders on this machine.

    data: {kind: hub, name: LightChen2333/M3CoT, columns: m3cot, validation: validation}
    lrkit eval tiny --data "hub:data/*.parquet#scienceqa/test"

Place in the pipeline: sources.py's table -> `HubData` -> `Passes` (in memory but for the pictures) or `Stream`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Field

from lrkit.config import load_config
from lrkit.contract.sample import Sample
from lrkit.data.expected import Expected
from lrkit.data.hub.row_files import Place, Rows, place_of
from lrkit.data.hub.row_samples import RowReader
from lrkit.data.hub.schemas import SCHEMAS, Columns, Row, Schema, SchemaName
from lrkit.data.hub.stored_pictures import PictureFolders, PictureRows, PicturesByName, PictureTable
from lrkit.data.hub.stream import Stream
from lrkit.data.hub.typical import TYPICAL
from lrkit.data.jsonl import Advance, JsonlScan, measure
from lrkit.data.passes import Passes
from lrkit.data.scans import Split
from lrkit.data.sources import DataSource, Plan, Source
from lrkit.data.step_split import SplitBy
from lrkit.errors import ConfigError, DataError, UserError, clean, shown
from lrkit.pictures.load import load_image
from lrkit.runtime.encode.processor import Processor

LOOKED_AT = 1000
"""Rows of a stream that a check looks at."""
_QUESTIONS = "_instructions"
"""How the names of GQA's configurations end that hold questions."""
_SYNTAX = "write hub:NAME#COLUMNS or hub:NAME#COLUMNS/SPLIT, then ,FIELD=VALUE for other fields of data"
_Name = Annotated[str, Field(min_length=1, max_length=1000)]


class HubData(DataSource):
    """A published data set: ORG/NAME of the hub, or files and folders here."""

    kind: Literal["hub"]
    """Published data sets."""
    name: _Name
    """ORG/NAME of the hub; or a .parquet, .json or .jsonl file, a pattern such as data/*.parquet, or a folder."""
    columns: SchemaName | Columns
    """What its columns hold: a published schema, or a mapping of your own."""
    config: _Name | None = None
    """One of the configurations of a folder or a data set of the hub."""
    revision: _Name | None = None
    """Branch, tag or commit of the hub; null: the newest."""
    split: _Name | None = None
    """Training split; null: train. A file is one split."""
    validation: _Name | None = None
    """Validation split, or a file of its own; null: no accuracy is measured."""
    pictures: Path | None = None
    """Folder of the pictures that rows name; null: that of the data file."""
    pictures_config: _Name | None = None
    """Configuration whose rows hold the pictures, in the columns id and image; null: that of gqa's own, or none."""
    steps: SplitBy = "auto"
    """How a solution becomes steps: paragraphs, sentences, or auto: paragraphs where there are several."""
    max_steps: int | None = Field(default=None, ge=1)
    """Steps of a sample at most, merged evenly; null: as many as there are. Latent steps merge them in any case."""
    streaming: bool = False
    """Rows are read as they come and never kept: for what does not fit on the disk."""
    buffer: int = Field(default=256, ge=1, le=65_536)
    """streaming only: rows that are held and shuffled at a time, with their pictures."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """What becomes of rows that cannot be used, their pictures included: the run is refused, or they are counted and
    left out; then every picture is opened before training, in a stream when its row is drawn."""

    @classmethod
    def samples(cls, name: str, count: int | None, split: Split, seed: int) -> list[Sample]:
        data = cls.named(name)
        rows = data.rows("train", streaming=count is not None and not data.place("train").is_json)
        scan = JsonlScan(rows.label)
        scan.samples = list(islice(data.good(rows, scan), count))
        data.settle(scan)
        return scan.samples

    @classmethod
    def named(cls, name: str) -> "HubData":
        """The data set of `hub:NAME#COLUMNS/SPLIT,FIELD=VALUE`.

        Raises:
            DataError: the name is not written so.
        """
        where, mark, how = name.removeprefix("hub:").rpartition("#")
        columns, *fields = how.split(",")
        columns, _, split = columns.partition("/")
        if not mark or not where or columns not in SCHEMAS or not all("=" in field for field in fields):
            raise DataError(
                f"{shown(name, 200)} names no data set; {_SYNTAX}, with COLUMNS one of {', '.join(SCHEMAS)}"
            )
        values: dict[str, Any] = {"kind": "hub", "name": where, "columns": columns, "split": split or None}
        try:
            return load_config(cls, values, fields, label=name)
        except ConfigError as error:
            raise DataError(f"{str(error).splitlines()[0]}; {_SYNTAX}") from error

    def open(self, seed: int, stages: Sequence[Plan]) -> Source:
        if problems := list(self.problems()):
            raise DataError("\n".join(problems))
        digests = self.digests()
        digest = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()
        if self.streaming:
            held = self.rows("validation", True) if self.validates else None
            return Stream(self.rows("train", True), held, seed, self.buffer, self.on_bad == "skip", digest, digests)
        read: dict[str, list[Sample]] = {}
        notes: list[str] = []
        for part in self.parts():
            rows = self.rows(part, False, f"{digest} {part}")
            scan = JsonlScan(rows.label)
            scan.samples = list(self.good(rows, scan))
            notes += self.settle(scan)
            read[part] = scan.samples
        source = Passes(read["train"], read.get("validation", []), seed, digest, digests, notes)
        source.check(stages, self.label("train"))
        return source

    @property
    def validates(self) -> bool:
        return self.validation is not None

    def expected(self) -> Expected | None:
        """Files and folders here are drawn from; what the network would have to bring is as published sets are."""
        try:
            place = self.place("train")
        except DataError:
            place = None
        if place is not None and (place.files or place.folder is not None):
            return None
        return TYPICAL.get(self.columns, Expected()) if isinstance(self.columns, str) else Expected()

    def problems(self) -> Iterator[str]:
        if self.columns not in get_args(SchemaName) and not isinstance(self.columns, Columns):
            yield f"data.columns must be one of {', '.join(SCHEMAS)}, or a mapping"
        if not self.streaming and self.buffer != type(self).model_fields["buffer"].default:
            yield "data.buffer belongs to streaming: true; leave it out"
        if isinstance(self.columns, Columns) and self.columns.answer_as == "letter" and not self.columns.chosen_from:
            yield "data.columns.answer_as: letter needs data.columns.choices; name the column of the choices"

    def stage_problems(self, stage: Plan) -> Iterator[str]:
        yield from super().stage_problems(stage)
        if self.streaming and stage.epochs is not None:
            yield "epochs count rows, and a stream has no number of them; give updates, or leave streaming out"
        if self.streaming and (stage.length_weights or stage.batches == "equal"):
            yield "a stream gives rows as they come; leave out length_weights and batches: equal, or streaming"

    def parts(self) -> dict[str, Path]:
        return {part: self.label(part) for part in ("train", *(("validation",) if self.validates else ()))}

    def digests(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in self.parts():
            place, split = self.place(part), self.split_of(part)
            found |= {f"{part}/{name}": digest for name, digest in place.digests(split).items()}
            if (pictures := self._pictures_place(place)) is not None and not place.files:
                found |= {f"{part}/pictures/{name}": digest for name, digest in pictures.digests(split).items()}
        return found

    def scan_part(self, part: str, processor: Processor | None = None, advance: Advance | None = None) -> JsonlScan:
        rows = self.rows(part, self.streaming)
        scan = JsonlScan(rows.label)
        numbered = islice(self.numbered(rows, scan), LOOKED_AT if self.streaming else None)
        measure(scan, numbered, processor)
        return scan

    def unchecked(self) -> Iterator[str]:
        if self.streaming:
            yield f"rows of the streams behind the first {LOOKED_AT}"

    def try_out(self, stages: Sequence[Plan], seed: int, processor: Processor | None) -> None:
        """`scan_part` does it."""

    def place(self, part: str) -> Place:
        """What is read for `train` or `validation`."""
        if part == "validation" and self._is_file(cast(str, self.validation)):
            return place_of(cast(str, self.validation))
        return place_of(self.name, self.config, self.revision)

    def split_of(self, part: str) -> str:
        """The split that is read for `train` or `validation`.

        Raises:
            DataError: a split is asked of a file, which is one.
        """
        asked = self.split if part == "train" else self.validation
        files = self.place(part).files
        if part == "validation" and self._is_file(cast(str, asked)):
            return "train"
        if files and asked is not None:
            raise DataError(
                f"{clean(self.name)}: a file is one split, and has none of the name {clean(asked)!r}; leave it out"
                + (", or give validation a file" if part == "validation" else "")
            )
        return asked or "train"

    def _is_file(self, name: str) -> bool:
        return Path(name).suffix.lower() in (".json", ".jsonl", ".ndjson", ".parquet", ".pq") or "*" in name

    def label(self, part: str) -> Path:
        """What messages call a part."""
        return self.place(part).label(self.split_of(part))

    def rows(self, part: str, streaming: bool, digest: str = "") -> "ReadRows":
        """The rows of a part, with what makes samples of them; `digest` as in `ReadRows`.

        Raises:
            DataError: it cannot be opened, or lacks a column.
        """
        place, split = self.place(part), self.split_of(part)
        schema = Schema(self.columns) if isinstance(self.columns, Columns) else SCHEMAS[self.columns]
        folders = self._pictures(place, split, digest) or PictureFolders(self.pictures or place.base, schema.folders)
        reader = RowReader(schema, folders, place.label(split), self.steps, self.max_steps)
        return ReadRows(Rows(place, split, streaming), reader, digest)

    def _pictures_place(self, place: Place) -> Place | None:
        """Where pictures lie that have rows of their own; None where they have none."""
        own = self.columns == "gqa" and self.pictures is None and (place.config or "").endswith(_QUESTIONS)
        config = self.pictures_config or ((place.config or "").removesuffix(_QUESTIONS) + "_images" if own else None)
        return None if config is None else replace(place, config=config)

    def _pictures(self, place: Place, split: str, digest: str) -> PicturesByName | None:
        where = self._pictures_place(place)
        if where is None:
            return None
        if where.files:
            raise DataError(f"{clean(where.name)}: a file has no configuration of pictures; name their folder instead")
        rows, label = Rows(where, split, streaming=False), where.label(split)
        if missing := {"id", "image"} - set(rows.names()):
            raise DataError(f"{label}: has no column {', '.join(sorted(missing))}; choose another pictures_config")
        ids = rows.dataset.select_columns(["id"])[:].column("id").to_pylist()
        held = PictureRows(rows.dataset, lambda row: row, ("image",), f"{digest} pictures")
        return PictureTable(held, ids, label)

    def numbered(self, rows: "ReadRows", scan: JsonlScan) -> Iterator[tuple[int, Sample]]:
        """(number, sample) of each row that can be used; the others go into `scan`."""
        for number, row in rows.rows:
            try:
                yield number, rows.sample(row, number)
            except DataError as error:
                scan.add_problem(number, str(error))

    def good(self, rows: "ReadRows", scan: JsonlScan) -> Iterator[Sample]:
        """As `numbered`; where bad rows are skipped, pictures are opened too."""
        for number, sample in self.numbered(rows, scan):
            try:
                for image in sample.images if self.on_bad == "skip" else ():
                    load_image(image)
            except UserError as error:
                scan.add_problem(number, str(error))
            else:
                yield sample

    def settle(self, scan: JsonlScan) -> list[str]:
        """What is said about the bad rows of a scan.

        Raises:
            DataError: they are refused, or nothing is left.
        """
        if self.on_bad == "refuse" and scan.num_bad_lines:
            scan.raise_if_bad()
        if not scan.samples:
            raise DataError(f"{clean(str(scan.path))}: holds no row that can be used; {_first(scan)}")
        if not scan.num_bad_lines:
            return []
        return [f"{clean(str(scan.path))}: {scan.num_bad_lines} bad rows were left out; {_first(scan)}"]


def _first(scan: JsonlScan) -> str:
    return f"the first: {scan.problems[0]}" if scan.problems else "check name and split"


class ReadRows:
    """Rows of a split and the reader that makes samples of them."""

    def __init__(self, rows: Rows, reader: RowReader, digest: str = "") -> None:
        """`digest` names the split among others. Raises `DataError` where a column is missing."""
        self.rows, self.reader = rows, reader
        self._pictures: PictureRows | None = None
        if rows.dataset is not None and not rows.streaming:
            self._pictures = PictureRows(rows.dataset, reader.schema.prepare, reader.columns.pictures, digest)
        if names := rows.names():
            reader.check_names(names)

    @property
    def label(self) -> Path:
        return self.reader.label

    @property
    def stream(self) -> Any:
        """What the package datasets streams rows from."""
        return self.rows.dataset

    def rows_from_here(self) -> Iterator[Row]:
        """Rows, of a stream from its state on."""
        return (row for _, row in self.rows)

    def sample(self, row: Row, number: int) -> Sample:
        """The sample of a row; its pictures stay in the data set where that is open. Raises as `RowReader.sample`."""
        row = self.reader.prepared(row)
        made = self.reader.sample_of(row, number)
        return (
            made
            if self._pictures is None
            else replace(made, images=self._pictures.stored(made.images, row, number - 1))
        )
