"""How a picture is resized to a number of pixels before it is cut: the arithmetic of transformers' `smart_resize`."""

import math

from lrkit.errors import DataError

MAX_ASPECT_RATIO = 200
"""Longest side over shortest side that the resizing accepts."""


def check_aspect(width: int, height: int) -> None:
    """Raises `DataError` where one side is more than 200 times the other."""
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise DataError(
            f"the picture has {width} x {height} pixels; the longer side may be at most "
            f"{MAX_ASPECT_RATIO} times the shorter, so crop it"
        )


def smart_size(width: int, height: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(width, height) in pixels: multiples of `factor`, so many pixels at least and at most, aspect ratio kept.

    Raises:
        DataError: the picture is more than 200 times as long as wide.
    """
    check_aspect(width, height)
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_width, new_height
