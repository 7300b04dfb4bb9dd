"""How a picture is resized and split into sub-images: the arithmetic of transformers' Idefics3 image processor.

Sizes are (width, height) in pixels.
"""

import math

from lrkit.families.protocols import Size

MOST_EDGE = 4096
"""Longest side after the first resizing, whatever the file says."""


def enlarged(size: Size, longest_edge: int) -> Size:
    """The first resizing: the longer side becomes `longest_edge`, in small pictures too; the shorter one even."""
    width, height = size
    ratio = width / height
    if width >= height:
        width = longest_edge
        height = _even(int(width / ratio))
    else:
        height = longest_edge
        width = _even(int(height * ratio))
    return _below_most(max(width, 1), max(height, 1))


def whole_tiles(size: Size, tile: int) -> Size:
    """The second resizing, of what `enlarged` gave: both sides to multiples of a sub-image's side."""
    width, height = size
    ratio = width / height
    if width >= height:
        width = _up(width, tile)
        return width, _up(int(width / ratio), tile)
    height = _up(height, tile)
    return _up(int(height * ratio), tile), height


def _below_most(width: int, height: int) -> Size:
    ratio = width / height
    if width >= height and width > MOST_EDGE:
        width = MOST_EDGE
        height = int(width / ratio)
    elif height > width and height > MOST_EDGE:
        height = MOST_EDGE
        width = int(height * ratio)
    return max(width, 1), max(height, 1)


def _even(side: int) -> int:
    return side + side % 2


def _up(side: int, tile: int) -> int:
    return math.ceil(side / tile) * tile
