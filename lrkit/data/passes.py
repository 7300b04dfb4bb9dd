"""Samples in memory as a source of training: shuffled passes over each chain length.

Place in the pipeline: jsonl_source.py, or another data set that holds its samples -> `Passes` -> curriculum -> batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrkit.contract.sample import Sample
from lrkit.data.sources import Plan, choose, length_problems
from lrkit.errors import DataError


class Passes:
    """Samples by number of steps; those of a length are shuffled again when all have been seen."""

    def __init__(
        self,
        train: Sequence[Sample],
        validation: Sequence[Sample],
        seed: int,
        digest: str,
        files: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """`digest` and `files` as in `Source`, `notes` as in `Noting`."""
        self._seed, self._digest, self._files = seed, digest, dict(files or {})
        self._by_length, self._validation = _by_length(train), _by_length(validation)
        self._seen = dict.fromkeys(self._by_length, 0)
        self._notes = list(notes)
        self._orders: dict[tuple[int, int], list[int]] = {}

    def check(self, stages: Sequence[Plan], what: object) -> None:
        """Every stage finds every length it draws; `what` names the data.

        Raises:
            DataError: naming all that do not.
        """
        if problems := length_problems(stages, what, self._by_length):
            raise DataError("\n".join(problems))

    def draw(self, stage: Plan, count: int, rng: np.random.Generator) -> list[Sample]:
        lengths = stage.lengths or tuple(sorted(self._by_length))
        weights = stage.length_weights or tuple(len(self._by_length[length]) for length in lengths)
        weighted = dict(zip(lengths, weights, strict=True))
        if stage.batches == "mixed":
            return [self._next(choose(weighted, rng)) for _ in range(count)]
        length = choose(weighted, rng)
        # A length with few lines gives a small batch rather than one that repeats lines.
        return [self._next(length) for _ in range(min(count, len(self._by_length[length])))]

    def validation(self, stage: Plan, count: int) -> dict[int, list[Sample]]:
        lengths = stage.lengths or tuple(sorted(self._validation))
        return {n: self._validation[n][:count] for n in sorted(set(lengths)) if n in self._validation}

    def held_out(self, stage: Plan, count: int) -> list[Sample]:
        return [sample for samples in self._validation.values() for sample in samples][:count]

    def num_samples(self, stage: Plan) -> int | None:
        return sum(len(self._by_length[length]) for length in stage.lengths or tuple(self._by_length))

    def state(self) -> dict[str, Any]:
        return {"seen": dict(self._seen)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._seen = dict(state["seen"])

    def digest(self) -> str:
        return self._digest

    def files(self) -> dict[str, str]:
        return dict(self._files)

    def pictures(self) -> Iterator[Path]:
        for samples in (*self._by_length.values(), *self._validation.values()):
            yield from (image for sample in samples for image in sample.images if isinstance(image, Path))

    def notes(self) -> list[str]:
        given, self._notes = self._notes, []
        return given

    def _next(self, length: int) -> Sample:
        lines = self._by_length[length]
        turn, place = divmod(self._seen[length], len(lines))
        self._seen[length] += 1
        if (length, turn) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != length}
            order = np.random.default_rng([self._seed, length, turn]).permutation(len(lines)).tolist()
            self._orders[length, turn] = order
        return lines[self._orders[length, turn][place]]


def _by_length(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        found.setdefault(len(sample.steps), []).append(sample)
    return found
