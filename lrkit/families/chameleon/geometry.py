"""Pictures to patches as the image processor of Chameleon sees them: resized by the shorter side, then the middle
square of them. Torch-free.

Place in the pipeline: image file -> `load_image` (upright RGB, pictures/load.py) -> `SquareGeometry.cut` (patches of
bytes, which programs read as they are) -> `SquareGeometry.pixel_values` (for the torch model). Values equal those of
transformers' Pillow image processor bit for bit; a parity test holds them.

The tower's convolutions read the whole square: patches are only how it is handed over, one for each visual token, row
by row. Every picture has equally many.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from lrkit.config import Config
from lrkit.contract.bundle.io_spec import TensorSpec
from lrkit.errors import DataError, UserError
from lrkit.families.chameleon.preprocessor_file import fields_of, token_side_of, values_for
from lrkit.families.common.config_values import made_of
from lrkit.families.common.no_windows import NoWindows
from lrkit.families.common.patch_processor_file import read_values
from lrkit.families.common.smart_resize import check_aspect
from lrkit.families.protocols import Box, Grid, Size

_MEANINGS = {
    "position_ids": "place of each token in the prompt",
    "pixel_values": "bytes of the patch of each visual token (channel, row, column), row by row, picture by picture; "
    "without a picture: one picture of zeros",
}


class SquareGeometry(NoWindows, Config):
    """How a picture becomes patches; read from and written to `preprocessor_config.json`. Implements `Geometry`.

    A grid is (rows, columns) of visual tokens, the same for every picture.
    """

    family: ClassVar[str] = "chameleon"
    axes: ClassVar[int] = 1

    shortest_edge: int = Field(default=512, ge=1, le=8192)
    """What the shorter side of a picture is resized to, in pixels."""
    crop_size: int = Field(default=512, ge=1, le=8192)
    """Side of the middle square that the tower sees, in pixels."""
    token_side: int = Field(default=16, ge=1, le=1024)
    """Side of a visual token in pixels; decided by the tower."""
    image_mean: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Subtracted from each of red, green, blue."""
    image_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divides each of red, green, blue."""
    rescale_factor: float = Field(default=0.0078, gt=0)
    """Multiplies the 8-bit values before normalisation."""
    resample: int = Field(default=int(Image.Resampling.LANCZOS), ge=0, le=5)
    """Pillow's number of the resizing filter; 1 is Lanczos."""

    @model_validator(mode="after")
    def _square_fits(self) -> Self:
        if self.crop_size > self.shortest_edge:
            raise ValueError(
                f"crop_size is {self.crop_size}, above the shorter side {self.shortest_edge} of a picture; lower it"
            )
        if self.crop_size % self.token_side:
            raise ValueError(f"crop_size is {self.crop_size}; it must be a multiple of {self.token_side}, a token")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std}; every value must be above 0")
        return self

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Reads `preprocessor_config.json`, or the image part of `processor_config.json`; config.json, where it is
        there, says how large a token is.

        Raises:
            CheckpointError: neither file is there, or it describes another kind of image processor.
        """
        values, source = read_values(folder)
        fields: dict[str, Any] = {**token_side_of(folder), **fields_of(values, source, cls.model_fields)}
        return made_of(cls, fields, source)

    def to_hf(self) -> dict[str, Any]:
        """Values for a `preprocessor_config.json` that transformers reads as the same processor."""
        return values_for(self.model_dump(mode="json"))

    def to_processor(self) -> dict[str, Any]:
        """Nothing: the other file says all."""
        return {}

    @classmethod
    def check_size(cls, width: int, height: int) -> None:
        """Raises `DataError` where one side is more than 200 times the other."""
        # A longer picture would be resized to more than 100,000 pixels in a row.
        check_aspect(width, height)

    def with_max_pixels(self, max_pixels: int | None) -> Self:
        """Unchanged: every picture is seen at one size.

        Raises:
            UserError: less than that size.
        """
        if max_pixels is not None and max_pixels < self.crop_size**2:
            raise UserError(
                f"max_pixels is {max_pixels}; this model sees every picture at {self.crop_size} x {self.crop_size} "
                f"pixels, so give at least {self.crop_size**2} or leave it out"
            )
        return self

    def within(self, size: Size, patches: int, tokens: int) -> Self:
        """Unchanged: pictures cannot be shrunk."""
        return self

    def seen_size(self, width: int, height: int) -> Size:
        """The middle square. Raises as `check_size`."""
        self.check_size(width, height)
        return self.crop_size, self.crop_size

    def grid(self, width: int, height: int) -> Grid:
        """The same for every picture. Raises as `check_size`."""
        self.check_size(width, height)
        return self.smallest_grid

    @property
    def smallest_grid(self) -> Grid:
        """That of every picture."""
        side = self.crop_size // self.token_side
        return side, side

    def resized(self, width: int, height: int) -> Size:
        """(width, height) in pixels after resizing, before the crop."""
        longer = int(self.shortest_edge * max(width, height) / min(width, height))
        return (self.shortest_edge, longer) if width <= height else (longer, self.shortest_edge)

    def corner(self, width: int, height: int) -> tuple[int, int]:
        """(left, top) of the square in a resized picture."""
        wide, high = self.resized(width, height)
        return (wide - self.crop_size) // 2, (high - self.crop_size) // 2

    def cut(self, picture: Image.Image) -> np.ndarray:
        """Patches, uint8 (N, patch_bytes), of a picture that `load_image` gave: upright and RGB. Raises as
        `check_size`."""
        (rows, columns), side = self.grid(*picture.size), self.token_side
        left, top = self.corner(*picture.size)
        resized = picture.resize(self.resized(*picture.size), resample=self.resample)
        square = resized.crop((left, top, left + self.crop_size, top + self.crop_size))
        pixels = np.asarray(square).reshape(rows, side, columns, side, 3)
        return pixels.transpose(0, 2, 4, 1, 3).reshape(rows * columns, self.patch_bytes)

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch: 3 channels x side x side."""
        return 3 * self.token_side**2

    def num_patches(self, grid: Grid) -> int:
        """One for each visual token."""
        return grid[0] * grid[1]

    def num_visual_tokens(self, grid: Grid) -> int:
        """Codes of a picture."""
        return grid[0] * grid[1]

    def num_prompt_tokens(self, grid: Grid) -> int:
        """The visual tokens: nothing stands between them."""
        return grid[0] * grid[1]

    def most_patches(self, num_images: int) -> int:
        """Those of so many pictures."""
        return num_images * self.num_patches(self.smallest_grid)

    def most_prompt_tokens(self, patches: int) -> int:
        """One for each patch."""
        return patches

    @property
    def patches_per_token(self) -> int:
        """One."""
        return 1

    @property
    def markers(self) -> tuple[str, ...]:
        """None."""
        return ()

    def with_marker_ids(self, ids: Sequence[Sequence[int]]) -> Self:
        """Unchanged: there are no markers."""
        return self

    def picture_ids(self, grid: Grid, image_id: int) -> list[int]:
        """One image token for each visual token."""
        return [image_id] * self.num_visual_tokens(grid)

    def positions(self, ids: Sequence[int], image_id: int, grids: Sequence[Grid]) -> np.ndarray:
        """(1, P): one after the other."""
        found, wanted = list(ids).count(image_id), sum(map(self.num_visual_tokens, grids))
        if found != wanted:
            raise DataError(
                f"the prompt has {found} image tokens, but its {len(grids)} pictures need {wanted}; encode the prompt "
                "with its own pictures"
            )
        return np.arange(len(ids), dtype=np.int64)[None]

    def token_box(self, index: int, grid: Grid, size: Size) -> Box:
        """Visual tokens run row by row over the middle square; the rest of the picture is never seen."""
        (row, column), (left, top) = divmod(index, grid[1]), self.corner(*size)
        wide, high = (whole / resized for whole, resized in zip(size, self.resized(*size), strict=True))
        x, y = left + column * self.token_side, top + row * self.token_side
        return x * wide, y * high, (x + self.token_side) * wide, (y + self.token_side) * high

    def pixel_values(self, patches: np.ndarray) -> np.ndarray:
        """Patches of bytes, uint8 (N, patch_bytes), rescaled and normalised: float32 (N, patch_bytes)."""
        table = _normalised_values(self.rescale_factor, self.image_mean, self.image_std)
        by_colour = patches.reshape(len(patches), 3, -1)
        values = [levels.take(by_colour[:, colour]) for colour, levels in enumerate(table)]
        return np.stack(values, axis=1).reshape(len(patches), -1)

    @property
    def program_inputs(self) -> tuple[TensorSpec, ...]:
        """Positions and patches."""
        places, bytes_ = _MEANINGS["position_ids"], _MEANINGS["pixel_values"]
        return (
            TensorSpec(name="position_ids", dtype="int64", shape=(1, "P"), meaning=places),
            TensorSpec(name="pixel_values", dtype="uint8", shape=("N", self.patch_bytes), meaning=bytes_),
        )

    def program_feed(
        self, ids: Sequence[int], image_id: int, grids: Sequence[Grid], patches: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """The arrays of `program_inputs`. Raises as `positions`."""
        if patches is None:  # the tower needs something to read; no image token refers to it
            patches = np.zeros((self.most_patches(1), self.patch_bytes), np.uint8)
        return {
            "position_ids": self.positions(ids, image_id, grids),
            "pixel_values": np.ascontiguousarray(patches, np.uint8),
        }


@lru_cache(maxsize=16)
def _normalised_values(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """float32 (3, 256): each 8-bit value after rescaling and normalisation, rounded as transformers rounds."""
    values = (np.arange(256, dtype=np.float64) * scale).astype(np.float32)
    return (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


PART = SquareGeometry
