"""A prompt as ids and patches, with where its parts are: what every engine reads. Torch-free.

Place in the pipeline: `Processor.encode_prompt` -> `EncodedPrompt` -> collate (training) or `Engine.generate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lrkit.families.protocols import Geometry, Grid
from lrkit.runtime.encode.fitting import Resized
from lrkit.runtime.encode.looked import Looked


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, ready for the model."""

    ids: list[int]
    """Token ids; the visual tokens are those equal to the image token's id."""
    patches: np.ndarray | None
    """uint8 (all pictures' patches, bytes of a patch); None without a picture."""
    grids: list[Grid]
    """Per picture: how it was cut, in the family's own numbers."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Per picture: (width, height) in pixels as given, upright."""
    geometry: Geometry | None = None
    """How the patches were cut; None without a picture."""
    resized: tuple[Resized, ...] = ()
    """The pictures that a limit made smaller."""
    picture_part: int = 0
    """Ids of the picture part: up to and with the last visual token. 0 where the prompt has one part: without a
    picture, and where nothing follows the last one."""
    looked: Looked | None = field(default=None, repr=False, compare=False)
    """What reading the picture part left; None where it is still to be read."""
    windows: np.ndarray | None = None
    """uint8 (visual tokens, patches of a window, bytes of a patch): what each visual token covers in the full picture,
    as `Geometry.cut_windows` cuts it; None where replay is not fine, or without a picture."""

    @property
    def pixel_values(self) -> np.ndarray | None:
        """The patches as the torch model reads them (`Geometry.pixel_values`); None without a picture."""
        if self.patches is None:
            return None
        assert self.geometry is not None, "patches without the geometry that they were cut by"
        return self.geometry.pixel_values(self.patches)

    @property
    def window_values(self) -> np.ndarray | None:
        """The windows as the torch model reads them, float32 (V, M, C); None where there are none."""
        if self.windows is None:
            return None
        assert self.geometry is not None, "windows without the geometry that they were cut by"
        values = self.geometry.pixel_values(self.windows.reshape(-1, self.windows.shape[-1]))
        return values.reshape(*self.windows.shape[:2], -1)


def picture_part(ids: Sequence[int], image_id: int) -> int:
    """How many ids stand up to and with the last visual token; 0 without one, and where none follows it.

    Both parts are read, and routed, as chunks of their own, so that the first never depends on what is asked.
    """
    behind = next((behind for behind, token in enumerate(reversed(ids)) if token == image_id), 0)
    return len(ids) - behind if behind else 0
