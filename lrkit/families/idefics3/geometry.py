"""Pictures to sub-images and their patches in numpy and Pillow, as the image processor of Idefics3 does it. Torch-free.

Place in the pipeline: image file -> `load_image` (upright RGB) -> `SplitPictures.cut` (patches of bytes, which programs
read as they are) -> `SplitPictures.pixel_values` (normalised, for the torch model). Values equal those of transformers'
Pillow image processor bit for bit; a test holds them.

A picture is resized to whole sub-images, which are views of their own, row by row; the last view is the whole picture,
coarser. A picture of one sub-image has that view alone.

Legend: n patches of a side of a view, s of a side of the square that becomes one visual token.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from lrkit.config import Config
from lrkit.contract.bundle.io_spec import TensorSpec
from lrkit.errors import CheckpointError, DataError, UserError
from lrkit.families.common.config_values import made_of
from lrkit.families.common.merged_patches import normalised_values
from lrkit.families.common.no_windows import NoWindows
from lrkit.families.idefics3.markers import Markers
from lrkit.families.idefics3.processor_file import read_fields, tokens_of_a_view, values_for
from lrkit.families.idefics3.splitting import MOST_EDGE, enlarged, whole_tiles
from lrkit.families.protocols import Box, Grid, Size

_HALVES = (0.5, 0.5, 0.5)
_MOST_TILES = 64
_PIXELS = (
    "bytes of each patch (channel, row, column), view by view: sub-images row by row, then the whole picture; without "
    "a picture: one view of zeros"
)


class SplitPictures(NoWindows, Config):
    """How a picture becomes views and patches. Implements `Geometry`.

    A grid is (rows, columns) of sub-images; (1, 1) is a picture in one view.
    """

    family: ClassVar[str] = "idefics3"
    axes: ClassVar[int] = 1
    why_no_windows: ClassVar[str] = "are split into views already"
    types: ClassVar[tuple[str, ...]] = (
        "Idefics3ImageProcessor",
        "Idefics3ImageProcessorFast",
        "Idefics3ImageProcessorPil",
    )
    """Of image processors."""
    processor_class: ClassVar[str] = "Idefics3Processor"

    patch_size: int = Field(default=16, ge=1, le=512)
    """Side of a patch in pixels."""
    scale_factor: int = Field(default=4, ge=1, le=64)
    """s, patches per side that become one visual token."""
    tile: int = Field(default=512, ge=1, le=MOST_EDGE)
    """Side of a view in pixels."""
    longest_edge: int = Field(default=2048, ge=1, le=1 << 20)
    """The longer side of a picture is resized to it, before the picture is split."""
    most_edge: int | None = Field(default=None, ge=1, le=1 << 20)
    """What `longest_edge` was before a limit lowered it; None: as it is."""
    split: bool = True
    """Whether there are sub-images."""
    image_mean: tuple[float, float, float] = _HALVES
    """Subtracted from each of red, green, blue."""
    image_std: tuple[float, float, float] = _HALVES
    """Divides each of red, green, blue."""
    rescale_factor: float = Field(default=1 / 255, gt=0)
    """Multiplies the 8-bit values before normalisation."""
    resample: int = Field(default=int(Image.Resampling.LANCZOS), ge=0, le=5)
    """Pillow's number of the resizing filter."""
    marker_ids: tuple[tuple[int, ...], ...] | None = Field(default=None, exclude=True)
    """Tokens of each of `markers`, once a tokenizer has told them."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        side = self.tile // self.patch_size
        if side == 0 or side % self.scale_factor:
            raise ValueError(
                f"sub-images of {self.tile} pixels have {side} patches a side, which must be a multiple of the "
                f"scale_factor {self.scale_factor}"
            )
        if (tiles := math.ceil(min(self.longest_edge, MOST_EDGE) / self.tile)) > _MOST_TILES:
            raise ValueError(f"pictures would be split into {tiles} rows; at most {_MOST_TILES} are read")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std}; every value must be above 0")
        return self

    @property
    def side(self) -> int:
        """n. What is left of a view at its right and lower edge, less than a patch, is seen by nobody."""
        return self.tile // self.patch_size

    @property
    def token_side(self) -> int:
        """Visual tokens of a side of a view."""
        return self.side // self.scale_factor

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch: 3 channels x side x side."""
        return 3 * self.patch_size**2

    @property
    def patches_per_token(self) -> int:
        """Patches of the square that becomes one visual token."""
        return self.scale_factor**2

    @property
    def smallest_grid(self) -> Grid:
        """One view."""
        return 1, 1

    @classmethod
    def check_size(cls, width: int, height: int) -> None:
        """Every picture can be read."""

    def grid(self, width: int, height: int) -> Grid:
        """Sub-images of a picture of this size in pixels."""
        if not self.split:
            return 1, 1
        seen = self._resized((width, height))
        return seen[1] // self.tile, seen[0] // self.tile

    def seen_size(self, width: int, height: int) -> Size:
        """(width, height) in pixels of all sub-images together."""
        rows, columns = self.grid(width, height)
        return columns * self.tile, rows * self.tile

    def _resized(self, size: Size) -> Size:
        return whole_tiles(enlarged(size, self.longest_edge), self.tile)

    def with_max_pixels(self, max_pixels: int | None) -> Self:
        """The same with another longest side, so that no picture has more pixels in its sub-images; None: unchanged.

        Pictures are always resized to the longest side: what is above the image processor's own changes nothing.

        Raises:
            UserError: less than one view.
        """
        if max_pixels is None:
            return self
        if max_pixels < self.tile**2:
            raise UserError(
                f"max_pixels is {max_pixels}; a view of this model has {self.tile} x {self.tile} pixels, so give at "
                f"least {self.tile**2}"
            )
        return self._limited(math.isqrt(max_pixels // self.tile**2) * self.tile)

    def within(self, size: Size, patches: int, tokens: int) -> Self:
        """The same with the largest longest side, in whole sub-images, by which a picture of this size fits."""
        for tiles in range(math.ceil(min(self.longest_edge, MOST_EDGE) / self.tile), 1, -1):
            smaller = self._limited(min(tiles * self.tile, self.longest_edge))
            grid = smaller.grid(*size)
            if self.num_patches(grid) <= patches and self.num_prompt_tokens(grid) <= tokens:
                return smaller
        return self._limited(self.tile)

    def _limited(self, edge: int) -> Self:
        most = self.longest_edge if self.most_edge is None else self.most_edge
        edge = min(edge, most)
        return self.model_copy(update={"longest_edge": edge, "most_edge": None if edge == most else most})

    def num_views(self, grid: Grid) -> int:
        """Sub-images, and the whole picture where there are several."""
        rows, columns = grid
        return 1 if rows * columns == 1 else rows * columns + 1

    def num_patches(self, grid: Grid) -> int:
        """Patches of all views."""
        return self.num_views(grid) * self.side**2

    def num_visual_tokens(self, grid: Grid) -> int:
        """Visual tokens of all views."""
        return self.num_views(grid) * self.token_side**2

    @property
    def _markers(self) -> Markers:
        edge = self.longest_edge if self.most_edge is None else self.most_edge
        # An uneven longest side makes the shorter one longer by a pixel.
        most = math.ceil(min(edge + edge % 2, MOST_EDGE) / self.tile) if self.split else 0
        return Markers(most, self.marker_ids)

    @property
    def markers(self) -> tuple[str, ...]:
        """See markers.py."""
        return self._markers.texts

    def with_marker_ids(self, ids: Sequence[Sequence[int]]) -> Self:
        """The same, with the tokens of `markers`."""
        return self.model_copy(update={"marker_ids": tuple(map(tuple, ids))})

    def picture_ids(self, grid: Grid, image_id: int) -> list[int]:
        """Views with their markers, as the family's processor writes them."""
        return self._markers.picture_ids(grid, [image_id] * self.token_side**2)

    def num_prompt_tokens(self, grid: Grid) -> int:
        """Visual tokens, and those of the markers."""
        return len(self.picture_ids(grid, 0))

    def most_patches(self, num_images: int) -> int:
        """Patches of square pictures, which have most sub-images."""
        return num_images * self.num_patches(self.grid(1, 1))

    def most_prompt_tokens(self, patches: int) -> int:
        """As if each view had all that any has."""
        return max(1, patches // self.side**2) * (self.token_side**2 + self._markers.most_of_a_view)

    def cut(self, picture: Image.Image) -> np.ndarray:
        """Patches, uint8 (N, patch_bytes), of an upright RGB picture: view by view, in each view square by square,
        (n / s, n / s, s, s)."""
        first = picture.resize(enlarged(picture.size, self.longest_edge), resample=self.resample)
        if not self.split:
            return self._patches(first.resize((self.tile, self.tile), resample=self.resample))
        whole = first.resize(self._resized(picture.size), resample=self.resample)
        parts = self._patches(whole)
        if whole.size == (self.tile, self.tile):
            return parts
        return np.concatenate([parts, self._patches(whole.resize((self.tile, self.tile), resample=self.resample))])

    def _patches(self, whole: Image.Image) -> np.ndarray:
        """Of a picture that consists of whole sub-images."""
        rows, columns = whole.height // self.tile, whole.width // self.tile
        squares, scale, patch = self.token_side, self.scale_factor, self.patch_size
        used = self.side * patch
        tiles = np.asarray(whole).reshape(rows, self.tile, columns, self.tile, 3)[:, :used, :, :used]
        cut = tiles.reshape(rows, squares, scale, patch, columns, squares, scale, patch, 3)
        return cut.transpose(0, 4, 1, 5, 2, 6, 8, 3, 7).reshape(-1, self.patch_bytes)

    def pixel_values(self, patches: np.ndarray) -> np.ndarray:
        """Patches of bytes as the torch model's tower reads them: rescaled and normalised, float32 (N, 3 * p * p)."""
        table = normalised_values(self.rescale_factor, self.image_mean, self.image_std)
        bytes_N3S = patches.reshape(len(patches), 3, -1)
        values = np.stack([levels.take(bytes_N3S[:, colour]) for colour, levels in enumerate(table)], axis=1)
        return values.reshape(len(patches), self.patch_bytes)

    def positions(self, ids: Sequence[int], image_id: int, grids: Sequence[Grid]) -> np.ndarray:
        """(1, P): every token counts, markers too."""
        found, wanted = list(ids).count(image_id), sum(map(self.num_visual_tokens, grids))
        if found != wanted:
            raise DataError(
                f"the prompt has {found} image tokens, and its pictures with the grids {list(grids)} make {wanted}; "
                "encode the prompt with its own pictures"
            )
        return np.arange(len(ids), dtype=np.int64)[None]

    def token_box(self, index: int, grid: Grid, size: Size) -> Box:
        """Visual tokens run row by row in each view; those of the last of several views cover the whole picture. The
        edge of a view that no patch covers is counted to the tokens beside it."""
        rows, columns = grid
        view, place = divmod(index, self.token_side**2)
        if view == rows * columns:
            view, rows, columns = 0, 1, 1
        tile_row, tile_column = divmod(view, columns)
        row, column = divmod(place, self.token_side)
        width, height = size[0] / columns, size[1] / rows
        left, right = ((tile_column + self._along(edge)) * width for edge in (column, column + 1))
        top, bottom = ((tile_row + self._along(edge)) * height for edge in (row, row + 1))
        return left, top, right, bottom

    def _along(self, tokens: int) -> float:
        """Where the first so many tokens of a view end, as a part of its side."""
        return 1.0 if tokens == self.token_side else tokens * self.patch_size * self.scale_factor / self.tile

    @property
    def program_inputs(self) -> tuple[TensorSpec, ...]:
        """Positions and patches: every view is cut alike."""
        patches = ("N", self.patch_bytes)
        return (
            TensorSpec(name="position_ids", dtype="int64", shape=(1, "P"), meaning="place of each token of the prompt"),
            TensorSpec(name="pixel_values", dtype="uint8", shape=patches, meaning=_PIXELS),
        )

    def program_feed(
        self, ids: Sequence[int], image_id: int, grids: Sequence[Grid], patches: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """The arrays of `program_inputs`. Raises as `positions`."""
        if patches is None:  # the tower needs something to read; no image token refers to it
            patches = np.zeros((self.side**2, self.patch_bytes), np.uint8)
        return {
            "position_ids": self.positions(ids, image_id, grids),
            "pixel_values": np.ascontiguousarray(patches, np.uint8),
        }

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Reads preprocessor_config.json (or the image part of processor_config.json), and config.json for what that
        leaves to the tower.

        Raises:
            CheckpointError: a file is missing, cannot be used or describes another kind of image processor.
        """
        fields, source = read_fields(folder, tuple(cls.model_fields), cls.types)
        made = made_of(cls, fields, source)
        if (told := tokens_of_a_view(folder)) not in (None, made.token_side**2):
            raise CheckpointError(
                f"{folder}: processor_config.json says {told} image tokens a view (image_seq_len), and the tower makes "
                f"{made.token_side**2} of {made.tile} pixels; the files are of two models, so copy both again"
            )
        return made

    def to_hf(self) -> dict[str, Any]:
        """Values for a preprocessor_config.json that transformers reads as the same processor."""
        return values_for(self.model_dump(mode="json"), self.types[0], self.processor_class)

    def to_processor(self) -> dict[str, Any]:
        """Image tokens of a view: without them transformers takes another model's number."""
        return {"image_seq_len": self.token_side**2, "processor_class": self.processor_class}


PART = SplitPictures
