"""What may watch a run: a small protocol, so that training knows nothing of analyses.

    recipe `analyze` -> `observer_of` -> an `Observer` -> the trainer calls it between updates

An observer changes nothing of the run: no weight, no gradient, no random number. Only the main process has one. Where
the recipe asks for none, nothing is imported, computed or stored.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lrkit.contract.sample import Sample
from lrkit.data.collate import TrainBatch
from lrkit.model.reasoner import LatentReasoner
from lrkit.registry import Registry
from lrkit.train.recipe import Recipe
from lrkit.train.stage import Stage


@dataclass(frozen=True)
class Watched:
    """What an observer sees of a run."""

    recipe: Recipe
    folder: Path
    """The run's."""
    reasoner: LatentReasoner
    collate: Callable[[Stage, Sequence[Sample]], TrainBatch]
    """Samples under the rules of a stage, on the device."""
    autocast: Callable[[], AbstractContextManager[object]]
    """The number types of training."""


class Observer(Protocol):
    """Watches a run."""

    def due(self, stage: Stage, done: int) -> bool:
        """Whether to look after `done` updates of a stage."""
        ...

    def look(self, stage: Stage, updates: int) -> None:
        """Looks at the model after `updates` updates of the run.

        Raises:
            UserError: samples cannot be read, or what was seen cannot be written.
        """
        ...


OBSERVERS: Registry[Callable[[Watched], Observer]] = Registry(
    "observer", {"gradients": "lrkit.analyze.during:GradientObserver"}
)
"""Name -> its class. The room stands above this one, so it is loaded by name."""


def observer_of(watched: Watched) -> Observer | None:
    """Who watches the run, as its recipe says."""
    return OBSERVERS.load("gradients")(watched) if watched.recipe.analyze is not None else None
