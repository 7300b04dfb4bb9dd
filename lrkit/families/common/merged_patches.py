"""Pictures to square patches that merge into visual tokens, in numpy and Pillow. Torch-free.

For families that resize to a number of pixels (smart_resize.py) and place tokens by M-RoPE (mrope.py).

Place in the pipeline: image file -> `load_image` (upright RGB, pictures/load.py) -> `MergedPatches.cut` (patches of
bytes, which programs read as they are) -> `MergedPatches.pixel_values` (normalised, for the torch model). Values equal
those of transformers' Pillow image processor bit for bit; a parity test holds them.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image
from pydantic import Field, PrivateAttr, model_validator

from lrkit.config import Config
from lrkit.contract.bundle.io_spec import TensorSpec
from lrkit.errors import UserError
from lrkit.families.common.config_values import made_of
from lrkit.families.common.mrope import VisualPositions, visual_positions
from lrkit.families.common.patch_places import patch_pictures, patch_positions
from lrkit.families.common.patch_processor_file import fields_of, read_values, values_for
from lrkit.families.common.smart_resize import check_aspect, smart_size
from lrkit.families.protocols import Box, Grid, Size
from lrkit.pictures.load import MAX_INPUT_PIXELS

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_POSITIONS = "M-RoPE positions (temporal, height, width) of the prompt"
_PIXELS = (
    "bytes of each patch as the picture has them (channel, row, column), picture by picture; without a picture: one "
    "merged square of zeros"
)
_PLACES = "row and column of each patch in its picture"
_PICTURES = "picture (and frame) that a patch belongs to: patches only see their own"


class MergedPatches(Config):
    """How a picture becomes patches; read from and written to `preprocessor_config.json`. Implements `Geometry` but for
    `family`, which a family's own class names.

    A grid is (frames, rows, columns) of patches, before spatial merge.
    """

    family: ClassVar[str]
    processor_class: ClassVar[str]
    """Of transformers, as a folder names it."""
    axes: ClassVar[int] = 3

    patch_size: int = Field(default=14, ge=1, le=512)
    """Side of a patch in pixels."""
    merge_size: int = Field(default=2, ge=1, le=64)
    """Patches per side that become one visual token."""
    temporal_patch_size: int = Field(default=2, ge=1, le=64)
    """Frames per patch; a still picture is repeated this often."""
    min_pixels: int = Field(default=56 * 56, ge=1, le=MAX_INPUT_PIXELS)
    """Smaller pictures are enlarged to at least this many pixels."""
    max_pixels: int = Field(default=28 * 28 * 1280, ge=1)
    """Larger pictures are shrunk to at most this many pixels."""
    image_mean: tuple[float, float, float] = _CLIP_MEAN
    """Subtracted from each of red, green, blue."""
    image_std: tuple[float, float, float] = _CLIP_STD
    """Divides each of red, green, blue."""
    rescale_factor: float = Field(default=1 / 255, gt=0)
    """Multiplies the 8-bit values before normalisation."""
    resample: int = Field(default=int(Image.Resampling.BICUBIC), ge=0, le=5)
    """Pillow's number of the resizing filter; 3 is bicubic."""
    visual_positions: VisualPositions = "grid"
    """Where the language model sees visual tokens."""
    _zoom: int = PrivateAttr(default=1)
    """Decided by the reasoner's settings: no field, as no file of an image processor holds it."""

    @model_validator(mode="after")
    def _limits_in_order(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels is {self.min_pixels}, above max_pixels {self.max_pixels}; lower min_pixels")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std}; every value must be above 0")
        return self

    @property
    def zoom(self) -> int:
        """The picture in the prompt has sides so many times shorter than the full one."""
        return self._zoom

    @property
    def factor(self) -> int:
        """Side in pixels of what a visual token of the prompt covers in the full picture, whose sides are multiples of
        it."""
        return self.patch_size * self.merge_size * self.zoom

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch: 3 channels x side x side."""
        return 3 * self.patch_size**2

    def pixel_values(self, patches: np.ndarray) -> np.ndarray:
        """Patches of bytes, uint8 (N, patch_bytes), as the torch model's tower reads them: rescaled, normalised, and
        repeated for each frame, float32 (N, 3 * T * p * p)."""
        table = normalised_values(self.rescale_factor, self.image_mean, self.image_std)
        count, frames, square = len(patches), self.temporal_patch_size, self.patch_size**2
        values = np.empty((count, 3, frames, square), dtype=np.float32)
        for channel, levels in enumerate(table):
            values[:, channel] = levels.take(patches.reshape(count, 3, 1, square)[:, channel])
        return values.reshape(count, 3 * frames * square)

    @property
    def patches_per_token(self) -> int:
        """Patches of the square that becomes one visual token."""
        return self.merge_size**2

    @property
    def smallest_grid(self) -> Grid:
        """One visual token."""
        return 1, self.merge_size, self.merge_size

    @classmethod
    def check_size(cls, width: int, height: int) -> None:
        """Raises `DataError` where one side is more than 200 times the other."""
        check_aspect(width, height)

    def seen_size(self, width: int, height: int) -> Size:
        """(width, height) in pixels of the full picture: multiples of `factor`, within the limits, aspect ratio kept.

        Raises:
            DataError: the picture is more than 200 times as long as wide.
        """
        return smart_size(width, height, self.factor, self.min_pixels, self.max_pixels)

    def grid(self, width: int, height: int) -> Grid:
        """The patches in the prompt of a picture of this size in pixels. Raises as `seen_size`."""
        new_width, new_height = self.seen_size(width, height)
        side = self.patch_size * self.zoom
        return 1, new_height // side, new_width // side

    def with_zoom(self, zoom: int) -> Self:
        """The same with another zoom.

        Raises:
            UserError: `max_pixels` is less than one window.
        """
        zoomed = self.model_copy()
        zoomed._zoom = zoom
        if zoom > 1 and self.max_pixels < zoomed.factor**2:
            raise UserError(
                f"replay.zoom is {zoom}, so a window has {zoomed.factor} x {zoomed.factor} pixels, and max_pixels is "
                f"{self.max_pixels}; lower replay.zoom, or give max_pixels of at least {zoomed.factor**2}"
            )
        return zoomed

    def with_max_pixels(self, max_pixels: int | None) -> Self:
        """The same with another largest number of pixels (None: unchanged); `min_pixels` gives way to it.

        Raises:
            UserError: less than one visual token.
        """
        if max_pixels is None:
            return self
        if max_pixels < self.factor**2:
            what = "visual token of this model has" if self.zoom == 1 else "window that it looks at in full has"
            raise UserError(
                f"max_pixels is {max_pixels}; a {what} {self.factor} x {self.factor} pixels, "
                f"so give at least {self.factor**2}"
            )
        return self.model_copy(update={"max_pixels": max_pixels, "min_pixels": min(self.min_pixels, max_pixels)})

    def within(self, size: Size, patches: int, tokens: int) -> Self:
        """The same with the largest max_pixels by which a picture of this size has at most so many patches and tokens.

        The rule rounds, and keeps one token on the shorter side: so what fits is found by trying.
        """
        most = min(patches // self.patches_per_token, tokens)
        fits, too_large = 1, max(2, most * self.factor**2 + 1)
        while too_large - fits > 1:
            middle = (fits + too_large) // 2
            if self.num_visual_tokens(self._limited(middle).grid(*size)) <= most:
                fits = middle
            else:
                too_large = middle
        return self._limited(fits)

    def _limited(self, max_pixels: int) -> Self:
        # Unlike with_max_pixels, down to a single pixel: the rule still leaves a token.
        return self.model_copy(update={"max_pixels": max_pixels, "min_pixels": min(self.min_pixels, max_pixels)})

    def num_patches(self, grid: Grid) -> int:
        """Patches of a picture with this grid."""
        frames, rows, columns = grid
        return frames * rows * columns

    def num_visual_tokens(self, grid: Grid) -> int:
        """Visual tokens of a picture with this grid, after spatial merge."""
        frames, rows, columns = grid
        return frames * (rows // self.merge_size) * (columns // self.merge_size)

    def num_prompt_tokens(self, grid: Grid) -> int:
        """The visual tokens: nothing stands between them."""
        return self.num_visual_tokens(grid)

    @property
    def markers(self) -> tuple[str, ...]:
        """None: a picture's image tokens stand in a row."""
        return ()

    def with_marker_ids(self, ids: Sequence[Sequence[int]]) -> Self:
        """The same: there are no markers."""
        return self

    def picture_ids(self, grid: Grid, image_id: int) -> list[int]:
        """One image token for each visual token."""
        return [image_id] * self.num_visual_tokens(grid)

    def most_patches(self, num_images: int) -> int:
        """Patches in the prompt of pictures with `max_pixels` each."""
        return num_images * self.max_pixels // (self.patch_size * self.zoom) ** 2

    def most_prompt_tokens(self, patches: int) -> int:
        """Visual tokens of so many patches."""
        return patches // self.patches_per_token

    def cut(self, picture: Image.Image) -> np.ndarray:
        """Patches, uint8 (N, patch_bytes), of a picture that `load_image` gave: upright and RGB.

        They are in the order of the spatial merge, (rows / m, columns / m, m, m). Raises as `seen_size`.
        """
        width, height = self.seen_size(*picture.size)
        return self._cut_at(picture, (width // self.zoom, height // self.zoom))

    @property
    def window_grid(self) -> Grid:
        """As of a picture of zoom x zoom visual tokens."""
        return 1, self.zoom * self.merge_size, self.zoom * self.merge_size

    def cut_windows(self, picture: Image.Image) -> np.ndarray:
        """uint8 (V, M, patch_bytes), where M is the patches of a window, in the order of `cut`. Raises as
        `seen_size`."""
        size = self.seen_size(*picture.size)
        token, zoom = self.patches_per_token * self.patch_bytes, self.zoom
        rows, columns = size[1] // self.factor, size[0] // self.factor
        tokens = self._cut_at(picture, size).reshape(rows, zoom, columns, zoom, token)
        return tokens.swapaxes(1, 2).reshape(rows * columns, zoom**2 * self.patches_per_token, self.patch_bytes)

    def _cut_at(self, picture: Image.Image, size: Size) -> np.ndarray:
        if size != picture.size:
            picture = picture.resize(size, resample=self.resample)
        # What np.asarray makes of a picture, by a shorter way.
        pixels = np.frombuffer(picture.tobytes(), np.uint8)
        patch, merge = self.patch_size, self.merge_size
        rows, columns = picture.height // patch, picture.width // patch
        cut = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
        return cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, self.patch_bytes)

    def positions(self, ids: Sequence[int], image_id: int, grids: Sequence[Grid]) -> np.ndarray:
        """(3, P): see mrope.py."""
        return visual_positions(self.visual_positions, ids, image_id, grids, self.merge_size)

    def token_box(self, index: int, grid: Grid, size: Size) -> Box:
        """Visual tokens run row by row."""
        _, rows, columns = grid
        (wide, high), merge = size, self.merge_size
        merged_rows, merged_columns = rows // merge, columns // merge
        row, column = divmod(index % (merged_rows * merged_columns), merged_columns)
        width, height = wide * merge / columns, high * merge / rows
        return column * width, row * height, (column + 1) * width, (row + 1) * height

    @property
    def program_inputs(self) -> tuple[TensorSpec, ...]:
        """Positions, patches, and what `tower_inputs` asks for."""
        return (
            TensorSpec(name="position_ids", dtype="int64", shape=(3, "P"), meaning=_POSITIONS),
            TensorSpec(name="pixel_values", dtype="uint8", shape=("N", self.patch_bytes), meaning=_PIXELS),
            *self.tower_inputs,
        )

    @property
    def tower_inputs(self) -> tuple[TensorSpec, ...]:
        """What the tower in a program reads beside the patches: where each of them lies."""
        return (
            TensorSpec(name="patch_positions", dtype="int64", shape=("N", 2), meaning=_PLACES),
            TensorSpec(name="patch_picture", dtype="int64", shape=("N",), meaning=_PICTURES),
        )

    def tower_feed(self, grids: Sequence[Grid]) -> dict[str, np.ndarray]:
        """The arrays of `tower_inputs`, for at least one picture. Not to be written to."""
        return {
            "patch_positions": patch_positions(grids, self.merge_size),
            "patch_picture": patch_pictures(grids),
        }

    def program_feed(
        self, ids: Sequence[int], image_id: int, grids: Sequence[Grid], patches: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """The arrays of `program_inputs`. Raises as `positions`."""
        seen = grids
        if patches is None:  # the tower needs something to read; no image token refers to it
            seen = [self.smallest_grid]
            patches = np.zeros((self.patches_per_token, self.patch_bytes), np.uint8)
        return {
            "position_ids": self.positions(ids, image_id, grids),
            "pixel_values": np.ascontiguousarray(patches, np.uint8),
            **self.tower_feed(seen),
        }

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read a Hugging Face folder: `preprocessor_config.json`, or the image part of `processor_config.json`.

        Raises:
            CheckpointError: neither file is there, or it describes another kind of image processor.
        """
        return cls.from_hf(*read_values(folder))

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], source: str = "preprocessor_config.json") -> Self:
        """Read the values of a Hugging Face image processor file; what lrkit does not use is passed over.

        Raises:
            CheckpointError: another kind of image processor, or one that does not resize.
        """
        return made_of(cls, fields_of(values, source, list(cls.model_fields)), source)

    def to_hf(self) -> dict[str, Any]:
        """Values for a `preprocessor_config.json` that transformers reads as the same processor."""
        fields = self.model_dump(mode="json", exclude={"visual_positions"} if self.visual_positions == "grid" else None)
        return values_for(fields, self.processor_class)

    def to_processor(self) -> dict[str, Any]:
        """Nothing: the other file says all."""
        return {}


@lru_cache(maxsize=16)
def normalised_values(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """float32 (3, 256): each 8-bit value after rescaling and normalisation, rounded as transformers rounds."""
    values = (np.arange(256, dtype=np.float64) * scale).astype(np.float32)
    return (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
