"""Turns an encoded prompt into the arrays that a program reads (io_spec.py). Numpy only: export's check and the runtime
share it."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lrkit.families.qwen2_vl.positions import mrope_positions

Grid = tuple[int, int, int]


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


def build_feed(
    ids: Sequence[int],
    grids: Sequence[Grid],
    patches: np.ndarray | None,
    *,
    image_id: int,
    merge: int,
    patch_bytes: int,
    think: bool,
    fixed_latents: bool,
    max_latent_steps: int,
    max_new_tokens: int,
) -> dict[str, np.ndarray]:
    """All inputs of the form `program` for one prompt. `patches` (N, patch_bytes) uint8; None without a picture.

    Raises:
        DataError: the image tokens in `ids` do not match `grids`.
    """
    if patches is None:  # the tower needs something to read; no image token refers to it
        patches, seen = np.zeros((merge * merge, patch_bytes), np.uint8), [(1, merge, merge)]
    else:
        seen = list(grids)
    return {
        "input_ids": np.asarray(ids, np.int64),
        "position_ids": mrope_positions(ids, image_id, grids, merge),
        "pixel_values": np.ascontiguousarray(patches, np.uint8),
        "patch_positions": patch_positions(seen, merge),
        "patch_picture": patch_pictures(seen),
        "think": np.array(think),
        "fixed_latents": np.array(fixed_latents),
        "max_latent_steps": np.array(max_latent_steps, np.int64),
        "max_new_tokens": np.array(max_new_tokens, np.int64),
    }
