"""Pictures of the fake family: square patches, row by row; each is a token, and a marker stands between two rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image
from pydantic import Field

from lrkit.config import Config
from lrkit.contract.bundle.io_spec import TensorSpec
from lrkit.errors import CheckpointError, DataError, UserError
from lrkit.families.common.no_windows import NoWindows
from lrkit.families.protocols import Box, Grid, Size
from lrkit.files import read_json

ROW = "<|row|>"
"""The marker."""
MAX_SIDE = 32
"""Rows or columns of a picture: as many as the tower has places for."""


class RowwiseGeometry(NoWindows, Config):
    """Implements `Geometry`. A grid is (rows, columns)."""

    family: ClassVar[str] = "rowwise"
    axes: ClassVar[int] = 1

    patch_size: int = Field(default=8, ge=1)
    max_pixels: int = Field(default=128 * 128, ge=1)
    resample: int = int(Image.Resampling.BILINEAR)
    row_id: int = Field(default=-1, exclude=True)
    """Token of the marker, once a tokenizer has told it."""

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        values = read_json(folder / "preprocessor_config.json", CheckpointError)
        if values.pop("image_processor_type", None) != "RowwiseImageProcessor":
            raise CheckpointError(f"{folder}: is no image processor of this family; copy the file again")
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        return {"image_processor_type": "RowwiseImageProcessor", **self.model_dump(mode="json")}

    def to_processor(self) -> dict[str, Any]:
        return {}

    @classmethod
    def check_size(cls, width: int, height: int) -> None:
        if max(width, height) > MAX_SIDE * min(width, height):
            raise DataError(f"the picture has {width} x {height} pixels, too long for {MAX_SIDE} patches; crop it")

    def with_max_pixels(self, max_pixels: int | None) -> Self:
        if max_pixels is None:
            return self
        if max_pixels < self.patch_size**2:
            raise UserError(f"max_pixels is {max_pixels}; give at least {self.patch_size**2}, a patch")
        return self.model_copy(update={"max_pixels": max_pixels})

    def within(self, size: Size, patches: int, tokens: int) -> Self:
        for area in range(patches, 1, -1):
            smaller = self.model_copy(update={"max_pixels": area * self.patch_size**2})
            if self.num_prompt_tokens(smaller.grid(*size)) <= tokens:
                return smaller
        return self.model_copy(update={"max_pixels": 1})

    def seen_size(self, width: int, height: int) -> Size:
        rows, columns = self.grid(width, height)
        return columns * self.patch_size, rows * self.patch_size

    def grid(self, width: int, height: int) -> Grid:
        self.check_size(width, height)
        scale = min(1.0, (self.max_pixels / (width * height)) ** 0.5, MAX_SIDE * self.patch_size / max(width, height))
        rows, columns = (max(1, int(side * scale / self.patch_size + 1e-9)) for side in (height, width))
        return rows, columns

    @property
    def smallest_grid(self) -> Grid:
        return 1, 1

    @property
    def patches_per_token(self) -> int:
        return 1

    def cut(self, picture: Image.Image) -> np.ndarray:
        size, side = self.seen_size(*picture.size), self.patch_size
        pixels = np.asarray(picture.resize(size, resample=self.resample))
        tiles = pixels.reshape(size[1] // side, side, size[0] // side, side, 3)
        return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, self.patch_bytes)

    @property
    def patch_bytes(self) -> int:
        return 3 * self.patch_size**2

    def num_patches(self, grid: Grid) -> int:
        return grid[0] * grid[1]

    def num_visual_tokens(self, grid: Grid) -> int:
        return grid[0] * grid[1]

    def num_prompt_tokens(self, grid: Grid) -> int:
        return grid[0] * grid[1] + grid[0] - 1

    def most_patches(self, num_images: int) -> int:
        return num_images * min(MAX_SIDE**2, self.max_pixels // self.patch_size**2)

    def most_prompt_tokens(self, patches: int) -> int:
        return 2 * patches

    @property
    def markers(self) -> tuple[str, ...]:
        return (ROW,)

    def with_marker_ids(self, ids: Sequence[Sequence[int]]) -> Self:
        (row,) = ids
        assert len(row) == 1, "the marker is a token of the vocabulary"
        return self.model_copy(update={"row_id": row[0]})

    def picture_ids(self, grid: Grid, image_id: int) -> list[int]:
        rows, columns = grid
        return ([*[image_id] * columns, self.row_id] * rows)[:-1]

    def positions(self, ids: Sequence[int], image_id: int, grids: Sequence[Grid]) -> np.ndarray:
        if (found := list(ids).count(image_id)) != (wanted := sum(map(self.num_visual_tokens, grids))):
            raise DataError(f"the prompt has {found} image tokens, and its pictures {wanted}; encode it with its own")
        return np.arange(len(ids), dtype=np.int64)[None]

    def token_box(self, index: int, grid: Grid, size: Size) -> Box:
        (row, column), (rows, columns) = divmod(index, grid[1]), grid
        width, height = size[0] / columns, size[1] / rows
        return column * width, row * height, (column + 1) * width, (row + 1) * height

    def pixel_values(self, patches: np.ndarray) -> np.ndarray:
        return (patches.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)

    @property
    def program_inputs(self) -> tuple[TensorSpec, ...]:
        where, patch = "picture, row, column of each patch", ("N", self.patch_bytes)
        return (
            TensorSpec(name="position_ids", dtype="int64", shape=(1, "P"), meaning="place of each token"),
            TensorSpec(name="pixel_values", dtype="uint8", shape=patch, meaning="bytes of each patch"),
            TensorSpec(name="patch_places", dtype="int64", shape=("N", 3), meaning=where),
        )

    def program_feed(
        self, ids: Sequence[int], image_id: int, grids: Sequence[Grid], patches: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        seen = grids if patches is not None else [self.smallest_grid]
        return {
            "position_ids": self.positions(ids, image_id, grids),
            "pixel_values": np.zeros((1, self.patch_bytes), np.uint8) if patches is None else patches,
            "patch_places": patch_places(seen),
        }


def patch_places(grids: Sequence[Grid]) -> np.ndarray:
    """(N, 3) int64: picture, row and column of every patch."""
    parts = [
        np.stack([np.full(rows * columns, number), *np.indices((rows, columns)).reshape(2, -1)], axis=1)
        for number, (rows, columns) in enumerate(grids)
    ]
    return np.concatenate(parts).astype(np.int64)


PART = RowwiseGeometry
