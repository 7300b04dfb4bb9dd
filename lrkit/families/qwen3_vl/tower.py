"""Qwen3-VL's vision tower in a program, for an export. Implements `TowerWriter` (export/graph/tower_writer.py).

The tower's own modules run, but for attention, rotary angles and the interpolation of learnt positions. A program reads
pictures as bytes: their normalisation, and that a still picture stands in every frame of a patch, is folded into the
first matrix.

Legend: N patches, C bytes of a patch, E width of the tower, V visual tokens, D width of the language model, F deep
layers.
"""

from typing import Any

import onnx_ir as ir
import torch
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
from lrkit.families.qwen3_vl.geometry import Qwen3VLPatches


class TraceableTower(TowerOverPatches):
    """Qwen3-VL's tower with everything that depends on the grids as an input."""

    def forward(
        self, pixel_values: Tensor, patch_positions: Tensor, patch_picture: Tensor, patch_grid: Tensor
    ) -> Tensor:
        """(N, C) from `Writer.pixels`, (N, 2), (N,), (N, 2) -> (V, D (1 + F))."""
        tower = self.tower
        seen = self.seen(patch_picture)
        # The patch is exactly the kernel: a matrix product says the same and runs faster than a convolution.
        hidden_NE = functional.linear(pixel_values, self.kernel_EC, self.bias_E)
        rows_N4, weights_N4 = corners(patch_positions, patch_grid, tower.num_grid_per_side)
        learnt_NE = (tower.pos_embed(rows_N4) * weights_N4[:, :, None]).sum(1)
        hidden_NE = self.placed(hidden_NE, learnt_NE.to(hidden_NE.dtype))
        angles = row_and_column_angles(tower.rotary_pos_emb.inv_freq, patch_positions)
        rotary = angles.cos().to(hidden_NE.dtype), angles.sin().to(hidden_NE.dtype)
        mergers = dict(zip(tower.deepstack_visual_indexes, tower.deepstack_merger_list, strict=True))
        deep: list[Tensor] = []
        for number, block in enumerate(tower.blocks):
            hidden_NE = hidden_NE + attend(block.attn, block.norm1(hidden_NE), rotary, seen, self.rotate)
            hidden_NE = hidden_NE + block.mlp(block.norm2(hidden_NE))
            if number in mergers:
                deep.append(mergers[number](hidden_NE))
        return torch.cat((tower.merger(hidden_NE), *deep), dim=-1)


def corners(positions_N2: Tensor, grid_N2: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Rows (N, 4) of a table of side x side learnt positions, and their weights (N, 4), float32: those around each
    patch when the table is spread over its picture, corner on corner. Patches are at (row, column) of pictures of so
    many rows and columns. Equal to what transformers' own tower takes, bit for bit; a test compares them."""
    at_N2 = positions_N2.to(torch.float32) * (side - 1) / (grid_N2 - 1).clamp(min=1)
    before_N2 = at_N2.floor()
    steps_2 = torch.arange(2, device=positions_N2.device)
    near_N22 = (before_N2.long()[:, :, None] + steps_2).clamp(0, side - 1)
    share_N22 = (1 - (at_N2[:, :, None] - before_N2[:, :, None] - steps_2).abs()).clamp(min=0)
    rows_N4 = (near_N22[:, 0, :, None] * side + near_N22[:, 1, None, :]).reshape(-1, 4)
    return rows_N4, (share_N22[:, 0, :, None] * share_N22[:, 1, None, :]).reshape(-1, 4)


def traceable_tower(tower: nn.Module, geometry: Qwen3VLPatches, fp16: bool, fused: bool = False) -> TraceableTower:
    """In the type that it computes in, for pictures that `geometry` describes; `fused` as in `TraceableTower`."""
    return TraceableTower(in_number_type(tower, fp16), first_matrix(tower, geometry, fp16), fused)


def traced_tower(tower: nn.Module, geometry: Qwen3VLPatches, fp16: bool, fused: bool = False) -> ir.Graph:
    """The same as torch.onnx sees it, for any number of patches. Raises as `traced`."""
    return traced_over_patches(traceable_tower(tower, geometry, fp16, fused), geometry, fp16)


class Qwen3VLTower:
    """See export/graph/tower_writer.py."""

    def write(self, tower: nn.Module, geometry: Qwen3VLPatches, dialect: Writer) -> Tower:
        """Traces the tower once; the result writes it into a graph."""
        return grafted(traced_tower(tower, geometry, dialect.target.computes_fp16, dialect.fused), dialect)

    def write_windows(self, tower: nn.Module, geometry: Qwen3VLPatches, dialect: Writer) -> WindowTower:
        """Traces it once more."""
        return write_windows(traceable_tower, tower, geometry, dialect)

    def sizes(self, tower: nn.Module) -> TowerSizes:
        """The mergers read merged squares, all else patches; rows of the table are looked up."""
        config: Any = tower.config
        weights, merger_weights = merged_weights(tower, "merger")
        table: Any = tower.get_submodule("pos_embed")
        weights -= table.weight.numel()
        return TowerSizes(config.hidden_size, config.depth, weights, merger_weights)


PART = Qwen3VLTower()
