"""Real handwritten digits for the trail data set: scikit-learn's `load_digits`, split by image.

Place in the pipeline: scans -> board -> trail -> `Sample`. A scan has 8 x 8 pixels. It is drawn into a tile of
16 x 16 pixels by bilinear sampling, in training with a small random shift, rotation and change of size. All scans of a
board are drawn at once, in numpy.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from lrkit.errors import require

Split = Literal["train", "val", "test"]

TILE = 16
"""Side of a drawn scan, pixels."""
SCAN = 8
"""Side of a scan as it comes, pixels."""
_SPAN = 14
"""Pixels of a tile over which a scan is spread: the margin is room for shifts."""
_NUM_TRAIN, _NUM_VAL = 1300, 200


@dataclass(frozen=True)
class ScanBank:
    """The scans of one split, sorted by digit."""

    pixels: np.ndarray
    """(num_scans, 10, 10) float32 ink in 0..1, with a border of one empty pixel."""
    digits: np.ndarray
    """(num_scans,) which digit each one is."""
    ids: np.ndarray
    """(num_scans,) row of each one in `load_digits`."""
    first: np.ndarray
    """(11,) the scans of digit d are rows first[d] to first[d + 1]."""

    def pick(self, digits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rows of random scans, one for each of `digits` (any shape)."""
        low = self.first[digits]
        return low + (rng.random(digits.shape) * (self.first[digits + 1] - low)).astype(np.int64)


@cache
def scan_bank(split: Split, seed: int = 0) -> ScanBank:
    """The scans of `split`; `seed` decides which scan belongs to which split (1300 / 200 / 297).

    Raises:
        MissingExtraError: scikit-learn, which carries the scans, is not installed.
    """
    scans = require("sklearn.datasets", "train").load_digits()
    order = np.random.default_rng(seed).permutation(len(scans.target))
    start, stop = {
        "train": (0, _NUM_TRAIN),
        "val": (_NUM_TRAIN, _NUM_TRAIN + _NUM_VAL),
        "test": (_NUM_TRAIN + _NUM_VAL, len(order)),
    }[split]
    ids = order[start:stop]
    ids = ids[np.argsort(scans.target[ids], kind="stable")]
    digits = scans.target[ids]
    pixels = np.pad((scans.images[ids] / 16).astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    return ScanBank(pixels, digits, ids, np.searchsorted(digits, np.arange(11)))


def plain_placement(num_scans: int) -> np.ndarray:
    """(num_scans, 2, 3) placements that draw scans upright, centred, at their usual size."""
    return np.tile(np.array([[1, 0, 0], [0, 1, 0]], np.float32), (num_scans, 1, 1))


def random_placement(
    num_scans: int, rng: np.random.Generator, shift: float, rotation: float, scale: float
) -> np.ndarray:
    """Random placements (num_scans, 2, 3).

    Shifts go up to `shift` pixels each way, turns up to `rotation` degrees, sizes from 1 - `scale` to 1 + `scale`.
    """
    uniform = rng.uniform(-1, 1, (5, num_scans)).astype(np.float32)
    angle = np.deg2rad(rotation) * uniform[0]
    # Height and width change apart: people write narrow and wide.
    stretch_y, stretch_x = 1 / (1 + scale * uniform[1]), 1 / (1 + scale * uniform[2])
    rows = np.stack([np.cos(angle) * stretch_y, -np.sin(angle) * stretch_y, shift * uniform[3]], 1)
    columns = np.stack([np.sin(angle) * stretch_x, np.cos(angle) * stretch_x, shift * uniform[4]], 1)
    return np.stack([rows, columns], 1)


def draw_scans(scans: np.ndarray, placement: np.ndarray) -> np.ndarray:
    """Scans (N, 10, 10) drawn into tiles (N, 16, 16), bilinear.

    `placement` (N, 2, 3) maps the offset of a pixel from its tile's centre to that from the scan's centre, in pixels.
    """
    axis = np.arange(TILE, dtype=np.float32) - (TILE - 1) / 2
    offset_y, offset_x = np.repeat(axis, TILE), np.tile(axis, TILE)
    grid = np.stack([offset_y, offset_x, np.ones_like(offset_y)])
    # Centre of the bordered scan; beyond the border everything is as empty as the border itself.
    place = (placement @ grid) * np.float32(SCAN / _SPAN) + np.float32((SCAN + 1) / 2)
    np.clip(place, 0, SCAN + 0.999, out=place)
    corner = place.astype(np.int64)
    fraction = place - corner
    (y, x), (fy, fx) = (corner[:, 0], corner[:, 1]), (fraction[:, 0], fraction[:, 1])
    side = SCAN + 2
    flat = scans.ravel()
    start = np.arange(len(scans))[:, None] * (side * side) + y * side + x
    above = flat[start] * (1 - fx) + flat[start + 1] * fx
    below = flat[start + side] * (1 - fx) + flat[start + side + 1] * fx
    return (above * (1 - fy) + below * fy).reshape(-1, TILE, TILE)
