"""Data sets by name: what each answers to training, evaluation and checks, and the one table of them. Torch-free.

    recipe `data: {kind: ...}`       -> `read_data` -> a `DataSource` -> `open` -> `Source` -> batches
    `--data NAME`, suites, sweeps    -> `load_samples` -> samples

A new data set is one file with a `DataSource`, and a row in SOURCES.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from pydantic_core import PydanticKnownError

from lrkit.config import Config
from lrkit.contract.sample import Sample
from lrkit.data.board import BoardKind
from lrkit.data.expected import Expected
from lrkit.data.jsonl import Advance, JsonlScan, check_jsonl
from lrkit.data.scans import Split
from lrkit.errors import DataError, did_you_mean
from lrkit.files import sha256
from lrkit.registry import Registry
from lrkit.runtime.encode.processor import Processor

KeyT = TypeVar("KeyT")


class Labels(Protocol):
    """How a label of visual tokens is read out."""

    @property
    def classes(self) -> int:
        """Labels run from 0 to classes - 1."""
        ...


class Plan(Protocol):
    """What a source reads of a stage of a recipe (lrkit/train/stage.py, where each field is explained)."""

    @property
    def name(self) -> str: ...
    @property
    def objective(self) -> Literal["reason", "vision"]: ...
    @property
    def readouts(self) -> Mapping[str, Labels]: ...
    @property
    def tasks(self) -> Mapping[str, float]: ...
    @property
    def boards(self) -> Mapping[BoardKind, float]: ...
    @property
    def lengths(self) -> tuple[int, ...]: ...
    @property
    def length_weights(self) -> tuple[float, ...]: ...
    @property
    def batches(self) -> Literal["mixed", "equal"]: ...
    @property
    def epochs(self) -> float | None: ...


class Source(Protocol):
    """Draws training samples and names the validation samples."""

    def draw(self, stage: Plan, count: int, rng: np.random.Generator) -> list[Sample]:
        """Up to `count` training samples for one batch, as the stage mixes them."""
        ...

    def validation(self, stage: Plan, count: int) -> dict[int, list[Sample]]:
        """Chain length -> the same up to `count` validation samples every time."""
        ...

    def held_out(self, stage: Plan, count: int) -> list[Sample]:
        """`count` validation samples drawn like the stage's training samples, the same every time."""
        ...

    def num_samples(self, stage: Plan) -> int | None:
        """Training samples that the stage can draw; None where they never end."""
        ...

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to draw on as if never stopped (beside the generator's own state)."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        ...

    def digest(self) -> str:
        """Names the training data: equal digests, equal samples."""
        ...

    def files(self) -> dict[str, str]:
        """Part of the data -> digest of its file, for all that is read from files."""
        ...

    def pictures(self) -> Iterator[Path]:
        """Every picture that is a file."""
        ...


@runtime_checkable
class Noting(Protocol):
    """A source that may leave samples out, and says so."""

    def notes(self) -> list[str]:
        """What was left out since the last call, a sentence each."""
        ...


class DataSource(Config, ABC):
    """What a recipe says under `data`, and what lrkit asks of a data set.

    A row has a field `kind: Literal["its name"]`, its own fields, `samples` and `open`, and overrides what else
    differs.
    """

    points: ClassVar[bool] = False
    """Whether its samples say where each step looks (lrkit/data/looks.py)."""
    drawn: ClassVar[str] = ""
    """What takes a package of the train extra to draw, in words; empty: the base install reads it."""

    @classmethod
    def sets(cls) -> tuple[str, ...]:
        """Names of its fixed sets, as `lrkit eval --data` takes them; each begins with the row's name and a colon."""
        return ()

    @classmethod
    @abstractmethod
    def samples(cls, name: str, count: int | None, split: Split, seed: int) -> list[Sample]:
        """The set of that name; `count` None: all of it. Raises as `load_samples`."""

    @classmethod
    def named(cls, name: str) -> "DataSource":
        """What a recipe would say of the set of that name.

        Raises:
            DataError: there is none, or sets of this kind are drawn and not read.
        """
        raise DataError(
            f"{name}: is drawn by lrkit, so there is nothing to check; give a data file or hub:NAME#COLUMNS"
        )

    @abstractmethod
    def open(self, seed: int, stages: Sequence[Plan]) -> Source:
        """What draws the batches of a run.

        Raises:
            DataError: a file is missing or has bad lines, or a stage asks for chain lengths that there are not.
        """

    @property
    def validates(self) -> bool:
        """Whether it has samples to validate on."""
        return True

    def label_words(self, label: str) -> tuple[str, ...] | None:
        """What each class of a label of visual tokens is called, as the model says it; None where it has no words."""
        return None

    def expected(self) -> Expected | None:
        """What its samples are like, for a plan of training where they are not at hand: it is not opened then. None: a
        plan draws some."""
        return None

    def words(self) -> tuple[str, ...] | None:
        """All words of its questions, steps and answers, from which a fresh backbone gets its tokenizer; None where
        they are not known."""
        return None

    def problems(self) -> Iterator[str]:
        """What is wrong with it, a sentence each."""
        yield from ()

    def stage_problems(self, stage: Plan) -> Iterator[str]:
        """What a stage asks of it and it has not, a sentence each."""
        if stage.tasks or stage.boards or stage.objective == "vision":
            yield "tasks, boards and objective vision need data that lrkit draws, such as trail; remove them"

    def files(self) -> dict[str, Path]:
        """Part of the data -> its file, for all that is read from files."""
        return {}

    def scan(self, path: Path, processor: Processor | None = None, advance: Advance | None = None) -> JsonlScan:
        """Every sample of one of its files, checked.

        Raises:
            DataError: the file cannot be read.
        """
        return check_jsonl(path, processor, advance)

    def parts(self) -> dict[str, Path]:
        """Part of the data -> what messages call it, for all that `scan_part` can check."""
        return self.files()

    def digests(self) -> dict[str, str]:
        """Part of the data -> digest, as the `files` of its source; of what is not there, nothing.

        Raises:
            DataError: it cannot be read.
        """
        return {part: sha256(path)[0] for part, path in self.files().items() if path.is_file()}

    def scan_part(self, part: str, processor: Processor | None = None, advance: Advance | None = None) -> JsonlScan:
        """Every sample of one of `parts`, checked. Raises as `scan`."""
        return self.scan(self.files()[part], processor, advance)

    def settle(self, scan: JsonlScan) -> list[str]:
        """What is said about what a scan left out; here nothing is.

        Raises:
            DataError: a line is bad, or there is no sample.
        """
        scan.raise_if_bad()
        return []

    def unchecked(self) -> Iterator[str]:
        """What `scan_part` leaves out, in words."""
        yield from ()

    def try_out(self, stages: Sequence[Plan], seed: int, processor: Processor | None) -> None:
        """A few samples of every stage can be drawn, and said in the words of the model; of files, `scan` says it.

        Raises:
            DataError: one cannot.
        """
        if not self.parts():
            self.open(seed, stages)

    @classmethod
    def alternatives(cls) -> list[type["DataSource"]]:
        """All classes that may stand where a recipe has its data, for messages about their keys."""
        return [SOURCES.load(kind) for kind in SOURCES.rows]


SOURCES: Registry[type[DataSource]] = Registry(
    "data set",
    {
        "trail": "lrkit.data.trail_source:TrailData",
        "jsonl": "lrkit.data.jsonl_source:JsonlData",
        "ledger": "lrkit.data.ledger.ledger_source:LedgerData",
        "hub": "lrkit.data.hub.hub_data:HubData",
    },
    DataSource,
)
"""Kind -> its class."""
OF_FILES = "jsonl"
"""Reads what is named by a path."""


def read_data(value: Any, handler: Any) -> Any:
    """Validator of a recipe's `data`: its kind chooses the class of the other values."""
    if isinstance(value, DataSource) or not isinstance(value, dict):
        return value if isinstance(value, DataSource) else handler(value)
    if "kind" not in value:
        raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
    kind: Any = value["kind"]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(kind, str) or kind not in SOURCES:
        allowed = ", ".join(repr(name) for name in SOURCES.rows)
        raise PydanticKnownError(
            "union_tag_invalid", {"discriminator": "'kind'", "tag": str(kind), "expected_tags": allowed}
        )
    # As load_config reads the recipe around it: strictly, yet lists for tuples and texts for paths.
    return SOURCES.load(kind).model_validate_json(json.dumps(value), strict=True)


def load_samples(name: str, count: int | None, split: Split = "test", seed: int = 0) -> list[Sample]:
    """Samples of a set of SOURCES such as `trail:main`, `trail:long`, `trail:faint`, `trail:wide` (drawn with scans of
    `split`), of a published data set such as `hub:LightChen2333/M3CoT#m3cot/test`, or of a JSONL file.

    `count` None takes a whole file, and 1,000 pictures of a trail set.

    Raises:
        DataError: a file that is not there or holds bad lines.
        UnknownNameError: a set that does not exist.
    """
    kind, colon, _ = name.partition(":")
    row = SOURCES.load(kind if colon and kind in SOURCES and kind != OF_FILES else OF_FILES)
    return row.samples(name, count, split, seed)


def scan_samples(name: str, processor: Processor | None = None, advance: Advance | None = None) -> JsonlScan:
    """Every sample of a published data set or a JSONL file, named as for `load_samples`, checked. Raises as `scan`."""
    kind, colon, _ = name.partition(":")
    if colon and kind in SOURCES and kind != OF_FILES:
        return SOURCES.load(kind).named(name).scan_part("train", processor, advance)
    return check_jsonl(Path(name), processor, advance)


def set_names() -> tuple[str, ...]:
    """Names of all fixed sets."""
    return tuple(name for kind in SOURCES.rows for name in SOURCES.load(kind).sets())


def choose(weights: Mapping[KeyT, float], rng: np.random.Generator) -> KeyT:
    """A key with probability in proportion to its weight; a single key costs no random number."""
    keys = list(weights)
    if len(keys) == 1:
        return keys[0]
    shares = np.cumsum(np.fromiter(weights.values(), float))
    return keys[int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))]


def task_problems(stage: Plan, known: Collection[str]) -> Iterator[str]:
    """The tasks of a stage that its data has not, a sentence each."""
    for name in stage.tasks:
        if name not in known:
            yield f"tasks: {name!r} is none of the data's, which are {', '.join(known)}{did_you_mean(name, known)}"


def length_problems(stages: Sequence[Plan], what: object, lengths: Collection[int]) -> list[str]:
    """The stages that draw chains of lengths which `what` does not have, one sentence each."""
    return [
        f"stage {stage.name} draws chains of {length} steps, but {what} has only lengths {sorted(lengths)}"
        for stage in stages
        for length in stage.lengths
        if length not in lengths
    ]
