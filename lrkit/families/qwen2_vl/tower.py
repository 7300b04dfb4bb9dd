"""Qwen2-VL's vision tower in a program, for an export. Implements `TowerWriter` (export/graph/tower_writer.py).

The tower's own modules run, but for attention and rotary angles. A program reads pictures as bytes: their
normalisation, and that a still picture stands in every frame of a patch, is folded into the first matrix.

Legend: N patches, C bytes of a patch, E width of the tower, V visual tokens, D width of the language model.
"""

from typing import Any

import onnx_ir as ir
from torch import Tensor, nn
from torch.nn import functional

from lrkit.export.graph.tower_pieces import (
    TowerOverPatches,
    attend,
    first_matrix,
    grafted,
    in_number_type,
    merged_weights,
    row_and_column_angles,
    traced_over_patches,
)
from lrkit.export.graph.tower_windows import write_windows
from lrkit.export.graph.tower_writer import Tower, TowerSizes, WindowTower
from lrkit.export.graph.writer import Writer
from lrkit.families.qwen2_vl.geometry import ImageGeometry


class TraceableTower(TowerOverPatches):
    """Qwen2-VL's tower with everything that depends on the grids as an input."""

    def forward(self, pixel_values: Tensor, patch_positions: Tensor, patch_picture: Tensor) -> Tensor:
        """(N, C) from `Writer.pixels`, (N, 2), (N,) -> (V, D)."""
        tower = self.tower
        seen = self.seen(patch_picture)
        # The patch is exactly the kernel: a matrix product says the same and runs faster than a convolution.
        hidden_NE = functional.linear(pixel_values, self.kernel_EC, self.bias_E)
        angles = row_and_column_angles(tower.rotary_pos_emb.inv_freq, patch_positions)
        rotary = angles.cos().to(hidden_NE.dtype), angles.sin().to(hidden_NE.dtype)
        for block in tower.blocks:
            hidden_NE = hidden_NE + attend(block.attn, block.norm1(hidden_NE), rotary, seen, self.rotate)
            hidden_NE = hidden_NE + block.mlp(block.norm2(hidden_NE))
        return tower.merger(hidden_NE)


def traceable_tower(tower: nn.Module, geometry: ImageGeometry, fp16: bool, fused: bool = False) -> TraceableTower:
    """In the type that it computes in, for pictures that `geometry` describes; `fused` as in `TraceableTower`."""
    return TraceableTower(in_number_type(tower, fp16), first_matrix(tower, geometry, fp16), fused)


def traced_tower(tower: nn.Module, geometry: ImageGeometry, fp16: bool, fused: bool = False) -> ir.Graph:
    """The same as torch.onnx sees it, for any number of patches. Raises as `traced`."""
    return traced_over_patches(traceable_tower(tower, geometry, fp16, fused), geometry, fp16)


class Qwen2VLTower:
    """See export/graph/tower_writer.py."""

    def write(self, tower: nn.Module, geometry: ImageGeometry, dialect: Writer) -> Tower:
        """Traces the tower once; the result writes it into a graph."""
        return grafted(traced_tower(tower, geometry, dialect.target.computes_fp16, dialect.fused), dialect)

    def write_windows(self, tower: nn.Module, geometry: ImageGeometry, dialect: Writer) -> WindowTower:
        """Traces it once more."""
        return write_windows(traceable_tower, tower, geometry, dialect)

    def sizes(self, tower: nn.Module) -> TowerSizes:
        """The merger reads merged squares, all else patches."""
        config: Any = tower.config
        weights, merger_weights = merged_weights(tower, "merger")
        return TowerSizes(config.embed_dim, config.depth, weights, merger_weights)


PART = Qwen2VLTower()
