"""How the processes of a run share an update: each computes a part of the batches that one process would compute alone.

    recipe -> `Share` -> Curriculum (lrkit/train/curriculum.py), which draws every batch and keeps the process's part

An update is over `accumulate` batches of `batch_size` samples, however many processes there are. Whole batches are
dealt out as far as they go: of 4 batches, 2 processes take every second. What is left is cut: of 1 batch, 2 processes
take every second sample. So the number of processes decides how fast a run is, and not what it learns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lrkit.errors import ConfigError
from lrkit.train.recipe import Recipe

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Share:
    """What one process does of each update."""

    process: int = 0
    """Its rank."""
    processes: int = 1
    accumulate: int = 1
    """Batches of an update, of all processes together."""

    @property
    def groups(self) -> int:
        """Batches that are computed side by side."""
        return math.gcd(self.accumulate, self.processes)

    @property
    def rounds(self) -> int:
        """Batches of an update in which this process has a part."""
        return self.accumulate // self.groups

    @property
    def parts(self) -> int:
        """Into how many parts each batch is cut."""
        return self.processes // self.groups

    @property
    def turn(self) -> int:
        """Which of `groups` batches this process has a part in."""
        return self.process % self.groups

    def part(self, samples: Sequence[ItemT]) -> list[ItemT]:
        """Its part of a batch; empty where there are fewer samples than parts."""
        return list(samples[self.process // self.groups :: self.parts])


def refuse_share(recipe: Recipe, processes: int) -> None:
    """Raises `ConfigError` where a batch has fewer samples than parts, so that a process would have nothing to do."""
    trained = [stage for stage in recipe.stages if stage.updates != 0]
    sizes = {stage.batch_size or recipe.batch_size: stage.name for stage in reversed(trained)}
    smallest = min(sizes)

    def enough(count: int) -> bool:
        return Share(0, count, recipe.accumulate).parts <= smallest

    if enough(processes):
        return
    fewer = next(count for count in range(processes - 1, 0, -1) if enough(count))
    raise ConfigError(
        f"{processes} processes cannot share an update of {recipe.accumulate} x {smallest} samples (accumulate x "
        f"batch_size of stage {sizes[smallest]}), as some would get none; start {fewer}, or raise batch_size or "
        "accumulate"
    )
