"""Where a latent step should look, as shares of the visual tokens that it chooses from. Torch-free.

    labels: boxes in the pictures, one group for each step (`Sample.info["looks"]`)     -> shares of visual tokens
    a teacher's visual tokens, and those of the model that learns, over the same pictures -> `overlaps` of the two

Place in the pipeline: collate.py asks for both; the pointing loss (lrkit/model/pointing.py) holds the saliency row that
selects against the shares. Everything is said in pixels of the original pictures, so that it does not matter how either
model cuts them.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lrkit.families.protocols import Box, Geometry, Grid, Size
from lrkit.runtime.encode.processor import EncodedPrompt

LABEL = "looks"
"""Of `Sample.info`: for each step, the `Look`s that it takes."""
Look = tuple[int, Box]
"""A picture of the sample, from 0, and a box in it: (left, top, right, bottom) in pixels."""


def label_shares(steps: Sequence[Sequence[Look]], prompt: EncodedPrompt) -> np.ndarray:
    """float32 (steps, V): each visual token's share of what a step should see, summing to 1; all 0 for a step without a
    label."""
    tokens = _token_boxes(prompt)
    shares = np.zeros((len(steps), len(tokens)), np.float32)
    for row, looks in zip(shares, steps, strict=True):
        if looks:
            row += _shared(_areas(np.array([(image, *box) for image, box in looks], np.float32), tokens)).sum(0)
            row /= max(float(row.sum()), 1e-9)
    return shares


def overlaps(teacher: EncodedPrompt, student: EncodedPrompt) -> np.ndarray:
    """float32 (teacher's visual tokens, student's): how much of each token of the one lies over each of the other, as
    shares that sum to 1. Not to be written to."""
    places = tuple(teacher.grids), tuple(teacher.sizes), tuple(student.grids), tuple(student.sizes)
    return _overlaps(teacher.geometry, student.geometry, *places)


@lru_cache(maxsize=64)
def _overlaps(
    teacher: Geometry | None,
    student: Geometry | None,
    grids: tuple[Grid, ...],
    sizes: tuple[Size, ...],
    own_grids: tuple[Grid, ...],
    own_sizes: tuple[Size, ...],
) -> np.ndarray:
    return _shared(_areas(_boxes(teacher, grids, sizes), _boxes(student, own_grids, own_sizes)))


def _token_boxes(prompt: EncodedPrompt) -> np.ndarray:
    return _boxes(prompt.geometry, tuple(prompt.grids), tuple(prompt.sizes))


@lru_cache(maxsize=64)
def _boxes(geometry: Geometry | None, grids: tuple[Grid, ...], sizes: tuple[Size, ...]) -> np.ndarray:
    """float32 (V, 5): picture and box of each visual token."""
    if geometry is None:
        return np.zeros((0, 5), np.float32)
    rows = [
        (image, *geometry.token_box(index, grid, size))
        for image, (grid, size) in enumerate(zip(grids, sizes, strict=True))
        for index in range(geometry.num_visual_tokens(grid))
    ]
    return np.array(rows, np.float32)


def _areas(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M): area of both."""
    one, other = boxes[:, None], others[None]
    sides = np.minimum(one[..., 3:], other[..., 3:]) - np.maximum(one[..., 1:3], other[..., 1:3])
    return np.where(one[..., 0] == other[..., 0], sides.clip(0).prod(-1), 0.0)


def _shared(areas: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; rows of zeros stay."""
    return (areas / np.maximum(areas.sum(1, keepdims=True), 1e-9)).astype(np.float32)
