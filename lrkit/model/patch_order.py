"""Patches of a picture in the order in which squares of them merge into visual tokens, on torch.

Place in the pipeline: backbones of families whose pictures lrkit/families/common/merged_patches.py cuts; the
distillation crops pictures through them (distill.py).

Legend: V visual tokens, N patches, C values of a patch (channel, frame, row, column).
"""

from dataclasses import dataclass

from torch import Tensor

from lrkit.families.protocols import Grid


@dataclass(frozen=True)
class PatchOrder:
    """How patches of one family lie. A grid is (frames, rows, columns) of patches, before they merge."""

    patch_size: int
    """Side in pixels."""
    merge_size: int
    """Patches per side of a visual token."""
    frames: int
    """Of a patch; a still picture stands in each of them."""

    def picture_sizes(self, grid: Grid) -> tuple[int, int]:
        """(patches, visual tokens) of one picture."""
        time, rows, columns = grid
        return time * rows * columns, time * (rows // self.merge_size) * (columns // self.merge_size)

    def token_raster(self, values_V: Tensor, grid: Grid) -> Tensor:
        """See `Backbone.token_raster`."""
        return values_V.view(-1, grid[1] // self.merge_size, grid[2] // self.merge_size).any(0)

    def unpatch(self, patches: Tensor, grid: Grid) -> Tensor:
        """See `Backbone.unpatch`. The patch order is (t, h/m, w/m, m, m)."""
        time, height, width = grid
        merge, size = self.merge_size, self.patch_size
        shape = (time, height // merge, width // merge, merge, merge, 3, self.frames, size, size)
        image = patches.view(shape)[0, :, :, :, :, :, 0]  # an image is one frame, repeated
        return image.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, height * size, width * size)

    def patch(self, image: Tensor) -> Tensor:
        """The inverse of `unpatch`: (channels, height, width) -> (N, C)."""
        merge, size = self.merge_size, self.patch_size
        channels, height, width = image.shape
        rows, columns = height // (size * merge), width // (size * merge)
        tiles = image.reshape(channels, rows, merge, size, columns, merge, size).permute(1, 4, 2, 5, 0, 3, 6)
        tiles = tiles[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, self.frames, -1, -1)
        return tiles.reshape(rows * columns * merge * merge, channels * self.frames * size * size)
