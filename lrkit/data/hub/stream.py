"""Rows read as they come: a source of training that holds one block of rows at a time.

Place in the pipeline: `HubData.open` with `streaming: true` -> `Stream` -> curriculum -> batches.

A block of `buffer` rows is read, shuffled by the seed, the turn and its place, and drawn; then the next one. So the
order follows from the seed alone, and a state is small: where the block begins, as the data set itself says it, and how
many of its rows were drawn. Going on reads that block again.
"""

import copy
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lrkit.contract.sample import Sample
from lrkit.data.hub.schemas import Row
from lrkit.data.sources import Plan
from lrkit.errors import DataError, UserError
from lrkit.pictures.load import load_image

HELD_ROWS = 512
"""Rows of the validation split that are read, and stay in memory."""


class Readable(Protocol):
    """Rows of a split and what makes samples of them (`ReadRows` of hub_data.py)."""

    @property
    def label(self) -> Path: ...
    @property
    def stream(self) -> Any:
        """The data set of the package datasets."""
        ...

    def rows_from_here(self) -> Iterator[Row]: ...
    def sample(self, row: Row, number: int) -> Sample: ...


class Stream:
    """A published data set as it is streamed."""

    def __init__(
        self,
        train: Readable,
        validation: Readable | None,
        seed: int,
        buffer: int,
        skips: bool,
        digest: str,
        files: Mapping[str, str],
    ) -> None:
        """`skips`: rows that cannot be used are counted and passed over. `digest` and `files` as in `Source`."""
        self._train, self._held, self._seed, self._buffer = train, validation, seed, buffer
        self._skips, self._digest, self._files = skips, digest, dict(files)
        self._beginning: dict[str, Any] = copy.deepcopy(train.stream.state_dict())
        self._turn = self._first = self._place = self._skipped = self._told = 0
        self._start: dict[str, Any] = copy.deepcopy(self._beginning)
        self._block: list[Row] | None = None
        self._order: list[int] = []
        self._rows: Iterator[Row] | None = None
        self._validation: list[Sample] | None = None
        self._first_fault = ""

    def draw(self, stage: Plan, count: int, rng: np.random.Generator) -> list[Sample]:
        del rng  # the order is the stream's own
        return [self._next(stage) for _ in range(count)]

    def validation(self, stage: Plan, count: int) -> dict[int, list[Sample]]:
        by_length: dict[int, list[Sample]] = {}
        for sample in self._held_samples():
            by_length.setdefault(len(sample.steps), []).append(sample)
        lengths = stage.lengths or tuple(sorted(by_length))
        return {n: by_length[n][:count] for n in sorted(set(lengths)) if n in by_length}

    def held_out(self, stage: Plan, count: int) -> list[Sample]:
        return self._held_samples()[:count]

    def num_samples(self, stage: Plan) -> int | None:
        return None

    def state(self) -> dict[str, Any]:
        return {
            "turn": self._turn,
            "first": self._first,
            "start": copy.deepcopy(self._start),
            "place": self._place,
            "skipped": self._skipped,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        if (state["turn"], state["first"]) != (self._turn, self._first):
            self._turn, self._first = state["turn"], state["first"]
            self._start = copy.deepcopy(state["start"])
            self._block = None
        self._place, self._skipped = state["place"], state["skipped"]

    def digest(self) -> str:
        return self._digest

    def files(self) -> dict[str, str]:
        return dict(self._files)

    def pictures(self) -> Iterator[Path]:
        return iter(())

    def notes(self) -> list[str]:
        """How many rows were passed over since the last call."""
        new, self._told = self._skipped - self._told, self._skipped
        if new <= 0:
            return []
        return [f"{self._train.label}: {new} bad rows were left out; the first: {self._first_fault}"]

    def _next(self, stage: Plan) -> Sample:
        turn, last = self._turn, 0
        while True:
            if self._block is None:
                self._read_block(self._start)
            assert self._block is not None
            if self._place >= len(self._block):
                self._go_on()
                last += self._turn > turn + 1
                if last:
                    wanted = f" with {list(stage.lengths)} steps" if stage.lengths else ""
                    raise DataError(
                        f"stage {stage.name}: {self._train.label} has no row{wanted} that can be used; "
                        f"{self._first_fault or 'change lengths'}"
                    )
                continue
            index = self._order[self._place]
            self._place += 1
            sample = self._sample(self._block[index], self._first + index + 1)
            if sample is not None and (not stage.lengths or len(sample.steps) in stage.lengths):
                return sample

    def _sample(self, row: Row, number: int) -> Sample | None:
        """None for a row that is passed over."""
        try:
            made = self._train.sample(row, number)
            for image in made.images if self._skips else ():
                load_image(image)
            return made
        except UserError as error:
            fault = _at(self._train, number, error)
            if not self._skips:
                raise DataError(fault) from error
            self._skipped += 1
            self._first_fault = self._first_fault or fault
            return None

    def _go_on(self) -> None:
        """The next block, or the first one of the next turn."""
        assert self._block is not None
        start, first = copy.deepcopy(self._train.stream.state_dict()), self._first + len(self._block)
        block = self._take()
        if not block:
            self._turn, first, start = self._turn + 1, 0, copy.deepcopy(self._beginning)
            self._rows = None
        self._first, self._start, self._place = first, start, 0
        if block:
            self._shuffle(block)
        else:
            self._read_block(start)

    def _read_block(self, start: Mapping[str, Any]) -> None:
        """Reads the block that begins where `start` says."""
        self._train.stream.load_state_dict(copy.deepcopy(dict(start)))
        self._rows = self._train.rows_from_here()
        self._shuffle(self._take())
        if not self._block and self._first == 0:
            raise DataError(f"{self._train.label}: holds no row; check name and split")

    def _take(self) -> list[Row]:
        assert self._rows is not None
        return list(islice(self._rows, self._buffer))

    def _shuffle(self, block: list[Row]) -> None:
        self._block = block
        self._order = np.random.default_rng([self._seed, self._turn, self._first]).permutation(len(block)).tolist()

    def _held_samples(self) -> list[Sample]:
        if self._validation is None:
            self._validation = []
            rows = iter(()) if self._held is None else islice(self._held.rows_from_here(), HELD_ROWS)
            for number, row in enumerate(rows, start=1):
                assert self._held is not None
                try:
                    self._validation.append(self._held.sample(row, number))
                except DataError as error:
                    if not self._skips:
                        raise DataError(_at(self._held, number, error)) from error
        return self._validation


def _at(rows: Readable, number: int, error: UserError) -> str:
    return f"{rows.label}:{number}: {error}"
