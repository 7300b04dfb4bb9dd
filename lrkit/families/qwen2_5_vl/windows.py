"""Which patches see each other in the layers that attend within windows, as an exported tower reads it. Torch-free.

A window is a square of the picture, `side` merged squares wide and high; those at the right and the lower edge may be
cut. A window is a part of one picture. So windows have different numbers of patches, and a tensor has rows of one
length: windows are packed into blocks of as many slots as a whole window has patches, the fullest first, and those that
are cut share blocks.

Two blocks that follow each other hold more than one block takes, otherwise the second would not have been begun. So N
patches need at most 2 (N // slots) + 1 blocks: the tower makes that many, a number that follows from N alone.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lrkit.families.protocols import Grid


def most_blocks(patches: int, slots: int) -> int:
    """Blocks of `slots` that windows of so many patches together need at most."""
    return 2 * (patches // slots) + 1


@lru_cache(maxsize=64)
def window_places(grids: tuple[Grid, ...], merge: int, side: int) -> np.ndarray:
    """(N, 2) int64: the slot of each patch, counted through all blocks, and the number of its window. Patches are in
    the tower's order, merged squares row by row. Not to be written to: an app asks about pictures of few sizes."""
    sizes, windows = _windows(grids, merge, side)
    starts = np.empty(len(sizes), np.int64)
    slots = (side * merge) ** 2
    free, end = 0, 0
    for window in np.argsort(-sizes, kind="stable"):
        if sizes[window] > free:
            end += slots
            free = slots
        starts[window] = end - free
        free -= sizes[window]
    # Patches keep their order inside a window.
    order = np.argsort(windows, kind="stable")
    before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    places = np.empty((len(windows), 2), np.int64)
    places[order, 0] = np.arange(len(windows)) - np.repeat(before - starts, sizes)
    places[:, 1] = windows
    places.flags.writeable = False
    return places


def _windows(grids: Sequence[Grid], merge: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of each window, and the window of each patch."""
    parts: list[np.ndarray] = []
    count = 0
    for rows, columns in _frames(grids, merge):
        across = -(-columns // side)
        numbers = np.arange(rows)[:, None] // side * across + np.arange(columns)[None, :] // side
        parts.append(count + np.repeat(numbers.ravel(), merge**2))
        count += -(-rows // side) * across
    windows = np.concatenate(parts)
    return np.bincount(windows, minlength=count), windows


def _frames(grids: Sequence[Grid], merge: int) -> Iterator[tuple[int, int]]:
    """(rows, columns) of merged squares, for each frame of each picture."""
    for time, height, width in grids:
        yield from ((height // merge, width // merge) for _ in range(time))


def seen_in_layers(vision: Any) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Of a tower's config: its layers in which a patch sees the whole picture, and its others, as many and with so many
    patches in sight at most."""
    whole = len(set(vision.fullatt_block_indexes))
    side = vision.window_size // vision.spatial_merge_size // vision.patch_size * vision.spatial_merge_size
    return whole, ((vision.depth - whole, side**2),) if whole < vision.depth else ()
