"""Replayed visual tokens as boxes in the user's own picture. Torch-free.

Place in the pipeline: token indices that the model replayed in a latent step -> `token_regions` -> `Answer.regions`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrkit.families.protocols import Box, Geometry, Grid, Size


@dataclass(frozen=True)
class Region:
    """A part of a picture that one latent step looked at again."""

    image: int
    """Which of the question's pictures, from 0."""
    box: Box
    """(left, top, right, bottom) in pixels of the upright original picture."""
    weight: float
    """Its share of the step's attention to all its regions, or 1 where no scores are known."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON report."""
        return asdict(self)


def token_regions(
    indices: Sequence[int],
    grids: Sequence[Grid],
    geometry: Geometry,
    sizes: Sequence[tuple[int, int]],
    weights: Sequence[float] | None = None,
) -> list[Region]:
    """Boxes of the visual tokens of one latent step.

    Args:
        indices: visual tokens, counted from 0 over all pictures of the prompt in order.
        grids: per picture how it was cut.
        geometry: what reads a grid.
        sizes: per picture (width, height) in pixels of the original.
        weights: one per index; None gives every region weight 1.

    Raises:
        IndexError: an index is outside the prompt's visual tokens.
    """
    weights = [1.0] * len(indices) if weights is None else weights
    places = (_place(index, grids, geometry, sizes) for index in indices)
    return [Region(*place, float(weight)) for place, weight in zip(places, weights, strict=True)]


def _place(index: int, grids: Sequence[Grid], geometry: Geometry, sizes: Sequence[Size]) -> tuple[int, Box]:
    """(picture, its box) of a visual token."""
    left = index
    for image, (grid, size) in enumerate(zip(grids, sizes, strict=True)):
        count = geometry.num_visual_tokens(grid)
        if 0 <= left < count:
            return image, geometry.token_box(left, grid, size)
        left -= count
    raise IndexError(f"visual token {index} is outside the prompt's pictures, which have {index - left} tokens")
