"""A data set as a stranger would add one: one file, and a row in the table. Which colour is the picture?"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from lrkit.contract.sample import Sample
from lrkit.data.passes import Passes
from lrkit.data.scans import Split
from lrkit.data.sources import DataSource, Plan
from lrkit.errors import UnknownNameError

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ToyData(DataSource):
    """Pictures of one colour."""

    kind: Literal["toy"]
    """Of this file."""
    count: int = Field(default=6, ge=1)
    """Training samples."""
    name: ClassVar[str] = "toy:colors"

    @classmethod
    def sets(cls) -> tuple[str, ...]:
        return (cls.name,)

    @classmethod
    def samples(cls, name: str, count: int | None, split: Split, seed: int) -> list[Sample]:
        if name not in cls.sets():
            raise UnknownNameError(f"unknown sample set {name!r}; known: {', '.join(cls.sets())}")
        chosen = np.random.default_rng([seed, len(split)]).choice(list(COLORS), count or 3).tolist()
        return [
            Sample((Image.new("RGB", (32, 16), COLORS[color]),), "Which colour ?", ("I see",), color, f"{split}-{i}")
            for i, color in enumerate(chosen)
        ]

    def open(self, seed: int, stages: Sequence[Plan]) -> Passes:
        train, held = (self.samples(self.name, self.count, split, seed) for split in ("train", "val"))
        source = Passes(train, held, seed, f"toy {self.count} {seed}")
        source.check(stages, self.name)
        return source

    def words(self) -> tuple[str, ...]:
        return ("Which", "colour", "?", "I", "see", *COLORS)
