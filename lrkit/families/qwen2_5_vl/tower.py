"""Qwen2.5-VL's vision tower in a program, for an export. Implements `TowerWriter` (export/graph/tower_writer.py).

The tower's own modules run, but for attention and rotary angles. A program reads pictures as bytes: their
normalisation, and that a still picture stands in every frame of a patch, is folded into the first matrix.

Most layers attend within windows of the picture. transformers reorders patches by windows and splits them there, which
cannot be traced with a free number of windows. A mask over all pairs of patches would be right, and throws away what
windows are for: on one core of a CPU the published tower (32 layers, 28 of them with windows) takes 12.1 s with it and
10.4 s without for a picture of 448 x 448 pixels, 81 s and 47 s for one of 896 x 896. So queries, keys and values go
into blocks of slots (windows.py) and back; the states themselves keep their order. The blocks are as many as N patches
need at most, so no axis of the program but N is free. Half of them may be empty; exactly as many as needed would make a
layer 1 to 3 percent faster.

Legend: N patches, C bytes of a patch, E width of the tower, V visual tokens, D width of the language model, H heads,
    W head width, G blocks, S slots of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrkit.export.graph.tower_pieces import (
    TowerOverPatches,
    first_matrix,
    grafted,
    in_number_type,
    merged_weights,
    mixed,
    picture_mask,
    row_and_column_angles,
    side_by_side,
    traced_over_patches,
    turned_parts,
)
from lrkit.export.graph.tower_windows import write_windows
from lrkit.export.graph.tower_writer import Tower, TowerSizes, WindowTower
from lrkit.export.graph.writer import Writer
from lrkit.families.qwen2_5_vl.geometry import WindowedPatches
from lrkit.families.qwen2_5_vl.windows import most_blocks, seen_in_layers

Parts = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of heads."""
_NOBODY = -1
"""The window of an empty slot."""


@dataclass(frozen=True)
class Blocks:
    """Where patches stand while layers attend within windows."""

    patch_at: Tensor
    """(G S,) the patch in each slot; 0 in an empty one."""
    slot_of: Tensor
    """(N,)."""
    mask_GSS: Tensor
    """Added to scores (H, G, S, S) of heads, float32."""

    def spread(self, x_1HNW: Tensor) -> Tensor:
        """(1, H, N, W) -> (H, G, S, W)."""
        _, heads, _, width = x_1HNW.shape
        slots = self.mask_GSS.shape[-1]
        return x_1HNW.index_select(2, self.patch_at).reshape(heads, -1, slots, width)

    def collected(self, x_HGSW: Tensor) -> Tensor:
        """(H, G, S, W) -> (1, H, N, W)."""
        heads, _, _, width = x_HGSW.shape
        return x_HGSW.reshape(1, heads, -1, width).index_select(2, self.slot_of)


def blocks_of(patch_windows: Tensor, slots: int) -> Blocks:
    """From the input of that name (N, 2), for blocks of so many slots."""
    slot_of, window_of = patch_windows[:, 0], patch_windows[:, 1]
    count = patch_windows.shape[0]
    empty = torch.zeros(slots * most_blocks(count, slots), dtype=torch.long)
    patch_at = empty.scatter(0, slot_of, torch.arange(count))
    window_GS = (empty + _NOBODY).scatter(0, slot_of, window_of).reshape(-1, slots)
    same_GSS = window_GS[:, :, None] == window_GS[:, None, :]
    return Blocks(patch_at, slot_of, torch.where(same_GSS, 0.0, -1e30).to(torch.float32))


class TraceableTower(TowerOverPatches):
    """Qwen2.5-VL's tower with everything that depends on the grids as an input."""

    def __init__(self, tower: nn.Module, first: tuple[Tensor, Tensor], slots: int, fused: bool) -> None:
        """`slots` are the patches of a whole window; the others as in `TowerOverPatches`."""
        super().__init__(tower, first, fused)
        self.slots = slots

    def forward(
        self, pixel_values: Tensor, patch_positions: Tensor, patch_picture: Tensor, patch_windows: Tensor
    ) -> Tensor:  # fmt: skip
        """(N, C) from `Writer.pixels`, (N, 2), (N,), (N, 2) -> (V, D)."""
        tower = self.tower
        # The patch is exactly the kernel: a matrix product says the same and runs faster than a convolution.
        hidden_NE = functional.linear(pixel_values, self.kernel_EC, self.bias_E)
        angles = row_and_column_angles(tower.rotary_pos_emb.inv_freq, patch_positions)
        rotary = angles.cos().to(hidden_NE.dtype), angles.sin().to(hidden_NE.dtype)
        seen, by_window = self.seen(patch_picture), self._by_window(patch_windows)
        for number, block in enumerate(tower.blocks):
            parts = turned_parts(block.attn, block.norm1(hidden_NE), rotary, self.rotate, self.view)
            if number in tower.fullatt_block_indexes:
                mixed_NE = seen.mixed(parts, block.attn.scaling)
            else:
                mixed_NE = side_by_side(by_window(parts, block.attn.scaling))
            hidden_NE = hidden_NE + block.attn.proj(mixed_NE)
            hidden_NE = hidden_NE + block.mlp(block.norm2(hidden_NE))
        return tower.merger(hidden_NE)

    def _by_window(self, patch_windows: Tensor) -> Callable[[Parts, float], Tensor]:
        """Mixes values within windows: in blocks, or within a view, which is small, by a mask."""
        if self.view is not None:
            mask_MM = picture_mask(patch_windows[:, 1]) if self.view > self.slots else None
            return lambda parts, scaling: mixed(parts, mask_MM, scaling)
        blocks = blocks_of(patch_windows, self.slots)

        def by_block(parts: Parts, scaling: float) -> Tensor:
            query, key, value = map(blocks.spread, parts)
            return blocks.collected(mixed((query, key, value), blocks.mask_GSS, scaling))

        return by_block


def traceable_tower(tower: nn.Module, geometry: WindowedPatches, fp16: bool, fused: bool = False) -> TraceableTower:
    """In the type that it computes in, for pictures that `geometry` describes; `fused` as in `TraceableTower`."""
    first = first_matrix(tower, geometry, fp16)
    return TraceableTower(in_number_type(tower, fp16), first, geometry.window_slots, fused)


def traced_tower(tower: nn.Module, geometry: WindowedPatches, fp16: bool, fused: bool = False) -> ir.Graph:
    """The same as torch.onnx sees it, for any number of patches. Raises as `traced`."""
    return traced_over_patches(traceable_tower(tower, geometry, fp16, fused), geometry, fp16)


class Qwen25VLTower:
    """See export/graph/tower_writer.py."""

    def write(self, tower: nn.Module, geometry: WindowedPatches, dialect: Writer) -> Tower:
        """Traces the tower once; the result writes it into a graph."""
        return grafted(traced_tower(tower, geometry, dialect.target.computes_fp16, dialect.fused), dialect)

    def write_windows(self, tower: nn.Module, geometry: WindowedPatches, dialect: Writer) -> WindowTower:
        """Traces it once more."""
        return write_windows(traceable_tower, tower, geometry, dialect)

    def sizes(self, tower: nn.Module) -> TowerSizes:
        """The merger reads merged squares, all else patches."""
        config: Any = tower.config
        weights, merger_weights = merged_weights(tower, "merger")
        whole, windows = seen_in_layers(config)
        return TowerSizes(config.hidden_size, whole, weights, merger_weights, windows)


PART = Qwen25VLTower()
