"""Replayed visual tokens as boxes in the user's own picture. Torch-free.

Place in the pipeline: token indices that the model replayed in a latent step -> `token_regions` -> `Answer.regions`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from lrkit.families.qwen2_vl.geometry import Grid


@dataclass(frozen=True)
class Region:
    """A part of a picture that one latent step looked at again."""

    image: int
    """Which of the question's pictures, from 0."""
    box: tuple[float, float, float, float]
    """(left, top, right, bottom) in pixels of the upright original picture."""
    weight: float
    """Its share of the step's attention to all its regions, or 1 where no scores are known."""

    def to_dict(self) -> dict[str, Any]:
        """For a JSON report."""
        return asdict(self)


def token_regions(
    indices: Sequence[int],
    grids: Sequence[Grid],
    merge_size: int,
    sizes: Sequence[tuple[int, int]],
    weights: Sequence[float] | None = None,
) -> list[Region]:
    """Boxes of the visual tokens of one latent step.

    Args:
        indices: visual tokens, counted from 0 over all pictures of the prompt in order.
        grids: per picture (frames, rows, columns) in patches, before spatial merge.
        merge_size: patches per side of a visual token.
        sizes: per picture (width, height) in pixels of the original.
        weights: one per index; None gives every region weight 1.

    Raises:
        IndexError: an index is outside the prompt's visual tokens.
    """
    given = tuple(grids), merge_size, tuple(sizes)
    weights = [1.0] * len(indices) if weights is None else weights
    return [Region(*_place(i, *given), float(weight)) for i, weight in zip(indices, weights, strict=True)]


@lru_cache(maxsize=4096)
def _place(
    index: int, grids: tuple[Grid, ...], merge_size: int, sizes: tuple[tuple[int, int], ...]
) -> tuple[int, tuple[float, float, float, float]]:
    """(picture, its box) of a visual token; tokens run row by row. Kept, as an app asks about pictures of few sizes."""
    left = index
    for image, ((frames, rows, columns), (wide, high)) in enumerate(zip(grids, sizes, strict=True)):
        merged_rows, merged_columns = rows // merge_size, columns // merge_size
        count = frames * merged_rows * merged_columns
        if 0 <= left < count:
            row, column = divmod(left % (merged_rows * merged_columns), merged_columns)
            width, height = wide * merge_size / columns, high * merge_size / rows
            return image, (column * width, row * height, (column + 1) * width, (row + 1) * height)
        left -= count
    raise IndexError(f"visual token {index} is outside the prompt's pictures, which have {index - left} tokens")
