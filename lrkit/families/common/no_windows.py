"""For geometries whose pictures cannot be seen small first and then, part by part, in full. Torch-free."""

from typing import ClassVar, Self

import numpy as np
from PIL import Image

from lrkit.errors import UserError
from lrkit.families.protocols import Geometry, Grid


class NoWindows:
    """The part of `Geometry` that is about windows, refused."""

    family: ClassVar[str]
    why_no_windows: ClassVar[str] = "are all seen at one size"
    """Ends the sentence "pictures of this family ..."."""

    def with_zoom(self, zoom: int) -> Self:
        """The same for 1.

        Raises:
            UserError: any other.
        """
        if zoom != 1:
            raise _refused(self.family, self.why_no_windows)
        return self

    @property
    def window_grid(self) -> Grid:
        """There is none."""
        raise AssertionError("with_zoom refuses")

    def cut_windows(self, picture: Image.Image) -> np.ndarray:
        """There are none."""
        raise AssertionError("with_zoom refuses")


def zoomed(geometry: Geometry, zoom: int) -> Geometry:
    """`Geometry.with_zoom`. A geometry that was written before there were windows lacks it, and is as one without.

    Raises:
        UserError: pictures of the family cannot be cut into windows.
    """
    if hasattr(geometry, "with_zoom"):
        return geometry.with_zoom(zoom)
    if zoom != 1:
        raise _refused(geometry.family, NoWindows.why_no_windows)
    return geometry


def _refused(family: str, why: str) -> UserError:
    return UserError(
        f"replay.source is fine, but pictures of {family} {why}, so they have no windows; set replay.source: prompt"
    )
