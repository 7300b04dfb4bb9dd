"""Where each patch lies, as an exported tower reads it."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lrkit.families.protocols import Grid


def patch_positions(grids: Sequence[Grid], merge: int) -> np.ndarray:
    """Row and column (N, 2) int64 of every patch, in the tower's order: merged squares row by row, then inside a
    square. Not to be written to."""
    parts = [_frame_positions(height, width, merge) for time, height, width in grids for _ in range(time)]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)


@lru_cache(maxsize=64)
def _frame_positions(height: int, width: int, merge: int) -> np.ndarray:
    """(height * width, 2) int64, not to be written to: an app asks about pictures of few sizes."""
    frame = np.indices((height, width)).reshape(2, height // merge, merge, width // merge, merge)
    return frame.transpose(1, 3, 2, 4, 0).reshape(-1, 2).astype(np.int64)


def patch_pictures(grids: Sequence[Grid]) -> np.ndarray:
    """Number (N,) int64 of the picture and frame that each patch belongs to. Not to be written to."""
    return _frame_numbers(tuple(height * width for time, height, width in grids for _ in range(time)))


@lru_cache(maxsize=64)
def _frame_numbers(sizes: tuple[int, ...]) -> np.ndarray:
    """For frames of so many patches; kept for the same reason."""
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
