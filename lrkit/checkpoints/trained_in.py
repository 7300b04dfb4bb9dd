"""Chooses the number type in which a checkpoint is used: the one its backbone was trained in, unless another is asked
for. Torch-free.

Place in the pipeline: reasoner.json (`provenance.numbers`, written by lrkit/train/run_report.py) -> torch/engine.py;
the command line says where the two differ. The rule for types within a model: lrkit/model/precision.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.errors import UserError, one_line
from lrkit.files import read_json

NUMBER_TYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"
"""As trained."""


def known_dtype(name: str | None) -> str | None:
    """A number type by name; None for `auto`.

    Raises:
        UserError: another name.
    """
    if name is None or name == AUTO:
        return None
    if name not in NUMBER_TYPES:
        raise UserError(
            f"unknown dtype {one_line(repr(name), 80)}; give one of {', '.join(NUMBER_TYPES)}, or {AUTO} for as trained"
        )
    return name


@dataclass(frozen=True)
class TrainedIn:
    """What reasoner.json says about a training, or what the weights' own file says where it is silent."""

    backbone: str | None
    """Type in which the backbone's weights were held; None where nobody says."""
    computed: str | None = None
    """Type of its products, where it is another (autocast)."""

    @classmethod
    def of(cls, info: Mapping[str, Any], base: str) -> "TrainedIn":
        """From reasoner.json and the folder (or hub id) of the backbone's weights."""
        provenance = info.get("provenance")
        numbers = provenance.get("numbers") if isinstance(provenance, Mapping) else None
        if isinstance(numbers, Mapping) and numbers.get("backbone") in list(NUMBER_TYPES):
            return cls(numbers["backbone"], numbers.get("computed"))
        return cls(_on_disk(Path(base)))

    def note(self, dtype: str) -> str | None:
        """A sentence where a model is used in another type than it was trained in."""
        if self.backbone is None or dtype in (self.backbone, self.computed):
            return None
        return (
            f"the model was trained in {self.backbone} and is asked in {dtype}, so its answers may differ; "
            f"{self.backbone} is the default"
        )


def _on_disk(base: Path) -> str | None:
    """The type that config.json names; checkpoints of older versions do not say what they were trained in."""
    try:
        config = read_json(base / "config.json")
    except UserError:  # loading the weights says what is wrong with it
        return None
    named = config.get("dtype", config.get("torch_dtype"))
    return next((name for name in NUMBER_TYPES if name == named), None)
