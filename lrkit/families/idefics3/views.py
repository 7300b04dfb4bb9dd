"""Views of pictures on torch: patches in the order of `SplitPictures.cut` to images and back.

Legend: I views, N patches, C values of a patch (channel, row, column), V visual tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lrkit.families.protocols import Grid


@dataclass(frozen=True)
class Views:
    """How patches lie in views. A grid is (rows, columns) of sub-images."""

    patch_size: int
    scale_factor: int
    tile: int
    """Side of a view in pixels."""

    @property
    def side(self) -> int:
        """Patches of a side of a view."""
        return self.tile // self.patch_size

    @property
    def token_side(self) -> int:
        """Visual tokens of a side of a view."""
        return self.side // self.scale_factor

    def picture_sizes(self, grid: Grid) -> tuple[int, int]:
        """(patches, visual tokens) of one picture."""
        views = 1 if grid[0] * grid[1] == 1 else grid[0] * grid[1] + 1
        return views * self.side**2, views * self.token_side**2

    def token_raster(self, values_V: Tensor, grid: Grid) -> Tensor:
        """See `Backbone.token_raster`: of the sub-images, or of what tokens of the whole picture lie over."""
        rows, columns, side = *grid, self.token_side
        parts_V = values_V[: rows * columns * side**2]
        if rows * columns > 1 and not parts_V.any():
            whole = values_V[len(parts_V) :].view(side, side)
            return whole.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        tiles = parts_V.view(rows, columns, side, side)
        return tiles.transpose(1, 2).reshape(rows * side, columns * side)

    def unpatch(self, patches: Tensor, grid: Grid) -> Tensor:
        """See `Backbone.unpatch`: of the sub-images, (3, height, width)."""
        rows, columns = grid
        tiles = self._tiles(patches[: rows * columns * self.side**2])
        used = self.side * self.patch_size
        joined = tiles.view(rows, columns, 3, used, used).permute(2, 0, 3, 1, 4)
        return joined.reshape(3, rows * used, columns * used)

    def patch(self, image: Tensor) -> Tensor:
        """See `Backbone.patch`."""
        used = self.side * self.patch_size
        rows, columns = image.shape[1] // used, image.shape[2] // used
        tiles = image.reshape(3, rows, used, columns, used).permute(1, 3, 0, 2, 4).reshape(-1, 3, used, used)
        if len(tiles) > 1:
            whole = functional.interpolate(image[None], (used, used), mode="bilinear", antialias=True)
            tiles = torch.cat([tiles, whole])
        count, squares, scale, patch = len(tiles), self.token_side, self.scale_factor, self.patch_size
        cut = tiles.reshape(count, 3, squares, scale, patch, squares, scale, patch)
        return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count * self.side**2, 3 * patch**2)

    def images(self, patches: Tensor) -> Tensor:
        """(N, C) -> (I, 3, tile, tile), with zeros where no patch is."""
        spare = self.tile - self.side * self.patch_size
        return functional.pad(self._tiles(patches), (0, spare, 0, spare))

    def _tiles(self, patches: Tensor) -> Tensor:
        squares, scale, patch = self.token_side, self.scale_factor, self.patch_size
        cut = patches.view(-1, squares, squares, scale, scale, 3, patch, patch)
        used = self.side * patch
        return cut.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(-1, 3, used, used)
