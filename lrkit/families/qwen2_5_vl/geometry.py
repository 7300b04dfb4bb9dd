"""How Qwen2.5-VL cuts pictures, and the windows in which most layers of its tower attend. Torch-free."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from lrkit.contract.bundle.io_spec import TensorSpec
from lrkit.errors import CheckpointError
from lrkit.families.common.merged_patches import MergedPatches
from lrkit.families.common.patch_processor_file import read_values
from lrkit.families.protocols import Grid
from lrkit.families.qwen2_5_vl.windows import window_places
from lrkit.files import read_json

_WINDOWS = (
    "slot of each patch among blocks of {slots}, for layers that attend within windows, and number of its window: in "
    "these layers patches only see their own"
)


class WindowedPatches(MergedPatches):
    """Implements `Geometry`; the defaults are those of the published models."""

    family: ClassVar[str] = "qwen2_5_vl"
    processor_class: ClassVar[str] = "Qwen2_5_VLProcessor"

    window_size: int = Field(default=112, ge=1, le=1 << 20)
    """Side of a window in pixels. Published files of image processors do not say it: it is config.json's."""

    @model_validator(mode="after")
    def _windows_hold_a_token(self) -> Self:
        if self.window_size < self.factor:
            raise ValueError(
                f"window_size is {self.window_size}, below the {self.factor} pixels of a visual token's side; raise it"
            )
        return self

    @property
    def window_side(self) -> int:
        """Side of a window in visual tokens; rounded as transformers rounds."""
        return self.window_size // self.merge_size // self.patch_size

    @property
    def window_slots(self) -> int:
        """Patches of a whole window."""
        return (self.window_side * self.merge_size) ** 2

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """As `MergedPatches.from_folder`, with the window of the folder's config.json where the image processor's file
        names none."""
        values, source = read_values(folder)
        if values.get("window_size") is None:
            values = {**values, "window_size": _window_of(folder)}
        return cls.from_hf(values, source)

    @property
    def tower_inputs(self) -> tuple[TensorSpec, ...]:
        """Where each patch lies in its picture and among the windows."""
        meaning = _WINDOWS.format(slots=self.window_slots)
        own = TensorSpec(name="patch_windows", dtype="int64", shape=("N", 2), meaning=meaning)
        return *super().tower_inputs, own

    def tower_feed(self, grids: Sequence[Grid]) -> dict[str, np.ndarray]:
        """The arrays of `tower_inputs`, for at least one picture. Not to be written to."""
        seen = tuple((frames, rows, columns) for frames, rows, columns in grids)
        return {**super().tower_feed(grids), "patch_windows": window_places(seen, self.merge_size, self.window_side)}


def _window_of(folder: Path) -> Any:
    """None where there is no config.json that says it."""
    vision = read_json(folder / "config.json", CheckpointError, missing_ok=True).get("vision_config")
    return vision.get("window_size") if isinstance(vision, dict) else None


PART = WindowedPatches
