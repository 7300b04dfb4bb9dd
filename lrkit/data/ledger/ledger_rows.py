"""What a ledger says: who is in which row, who comes next, and how much of what each has.

Place in the pipeline: a `numpy.random.Generator` -> `Ledger` -> picture, questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrkit.data.ledger.ledger_words import GOODS, NAMES

MAX_ROWS = 8


@dataclass(frozen=True)
class Ledger:
    """A table: a column of names, one that names another row, one or two of numbers."""

    names: tuple[str, ...]
    """Of each row."""
    next_rows: tuple[int, ...]
    """Of each row the one that its column Next names; all rows are on one ring."""
    goods: tuple[str, ...]
    """Titles of the columns of numbers."""
    numbers: tuple[tuple[int, ...], ...]
    """For each of `goods` a number in each row; no two of a column are equal."""

    def path(self, start: int, hops: int) -> list[int]:
        """The rows from `start` on, each named by the one before; `hops` + 1 of them."""
        rows = [start]
        for _ in range(hops):
            rows.append(self.next_rows[rows[-1]])
        return rows


def draw_ledger(rng: np.random.Generator, rows: Sequence[int], most: int) -> Ledger:
    """A random ledger: as many rows as one of `rows` says, numbers from 1 to `most`."""
    num_rows = int(rng.choice(list(rows)))
    ring = rng.permutation(num_rows)
    next_rows = np.empty(num_rows, int)
    next_rows[ring] = np.roll(ring, -1)
    goods = rng.permutation(len(GOODS))[: int(rng.integers(1, 3))]
    names = rng.permutation(len(NAMES))[:num_rows]
    numbers = [rng.permutation(most)[:num_rows] + 1 for _ in goods]
    return Ledger(
        tuple(NAMES[number] for number in names),
        tuple(next_rows.tolist()),
        tuple(GOODS[number] for number in goods),
        tuple(tuple(column.tolist()) for column in numbers),
    )
