"""Pictures of Qwen3-VL: patches that merge into visual tokens, and what its tower asks of a patch's place.

The tower interpolates learnt positions over the whole picture, so a program also reads how many rows and columns the
picture of each patch has. Published files describe an image processor that transformers has for several families; what
a file leaves out has the defaults of that processor.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np

from lrkit.contract.bundle.io_spec import TensorSpec
from lrkit.families.common.merged_patches import MergedPatches
from lrkit.families.protocols import Grid

_GRID = "rows and columns of patches of the picture that a patch belongs to"


class Qwen3VLPatches(MergedPatches):
    """Implements `Geometry`. A grid is (frames, rows, columns) of patches, before spatial merge."""

    family: ClassVar[str] = "qwen3_vl"
    processor_class: ClassVar[str] = "Qwen3VLProcessor"

    @property
    def tower_inputs(self) -> tuple[TensorSpec, ...]:
        """Where each patch lies, and in how large a picture."""
        own = TensorSpec(name="patch_grid", dtype="int64", shape=("N", 2), meaning=_GRID)
        return (*super().tower_inputs, own)

    def tower_feed(self, grids: Sequence[Grid]) -> dict[str, np.ndarray]:
        """The arrays of `tower_inputs`. Not to be written to."""
        return {**super().tower_feed(grids), "patch_grid": _patch_grids(tuple(map(tuple, grids)))}


@lru_cache(maxsize=64)
def _patch_grids(grids: tuple[Grid, ...]) -> np.ndarray:
    """(N, 2) int64; kept, as an app asks about pictures of few sizes."""
    sizes = np.array([grid[1:] for grid in grids], np.int64)
    return np.repeat(sizes, [frames * rows * columns for frames, rows, columns in grids], axis=0)


PART = Qwen3VLPatches
