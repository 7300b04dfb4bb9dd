"""What data sets that lrkit draws have in common: they never end, read no file, and keep nothing between draws but the
generator's state. Torch-free.

Place in the pipeline: trail_source.py and ledger/ledger_source.py build on it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrkit.data.sources import KeyT, Plan
from lrkit.errors import UnknownNameError, did_you_mean

MANY = 1000
"""Samples of a fixed set where no number is asked for."""


class DrawnSource:
    """The part of a `Source` that is the same for all of them."""

    def num_samples(self, stage: Plan) -> int | None:
        """None: they never end."""
        return None

    def state(self) -> dict[str, Any]:
        """Nothing: all chance comes from the generator that the curriculum keeps."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing."""

    def files(self) -> dict[str, str]:
        """None."""
        return {}

    def pictures(self) -> Iterator[Path]:
        """None is a file."""
        return iter(())


def kind_of_set(name: str, sets: Sequence[str]) -> str:
    """What stands behind the colon of a fixed set's name.

    Raises:
        UnknownNameError: it is none of `sets`.
    """
    if name not in sets:
        raise UnknownNameError(f"unknown sample set {name!r}; known: {', '.join(sets)}{did_you_mean(name, sets)}")
    return name.partition(":")[2]


def readout_problems(stage: Plan, classes: Mapping[str, int]) -> Iterator[str]:
    """The read-outs of a stage that do not fit the labels of visual tokens: name -> how many classes it has."""
    for name, readout in stage.readouts.items():
        if name not in classes:
            yield f"readouts: samples have no label {name!r}; known: {', '.join(classes)}"
        elif readout.classes < classes[name]:
            yield f"readouts.{name}: has {readout.classes} classes for labels from 0 to {classes[name] - 1}; raise it"


def heaviest(weights: Mapping[KeyT, float]) -> KeyT:
    """The key that is drawn most often."""
    return max(weights, key=lambda key: weights[key])
