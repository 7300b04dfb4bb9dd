"""Qwen2-VL's vision tower in a program, for an export. Implements `TowerWriter` (export/graph/tower_writer.py).

The tower's own modules run; only the attention over several pictures is written here, with one additive mask instead
of a split by picture, because a split cannot be traced with a free number of pictures. A program reads pictures as
bytes: their normalisation, and that a still picture stands in every frame of a patch, is folded into the first matrix.

Legend: N patches, C bytes of a patch, H heads, W head width, E width of the tower, V visual tokens, D width of the
    language model.
"""

import copy
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrkit.export.graph.nodes import CONTRIB, Carried, Graph, Value
from lrkit.export.graph.tower_writer import Tower, TowerSizes
from lrkit.export.graph.tracing import graft, traced
from lrkit.export.graph.writer import PIXEL_CENTRE, PIXEL_UNIT, Writer
from lrkit.families.qwen2_vl.geometry import ImageGeometry

INPUTS = ("pixel_values", "patch_positions", "patch_picture")


class TraceableTower(nn.Module):
    """Qwen2-VL's tower with everything that depends on the grids as an input."""

    def __init__(self, tower: nn.Module, first: tuple[Tensor, Tensor], fused: bool) -> None:
        """`first` is what `folded` gave; `fused` writes ONNX Runtime's own rotation: such a tower can be traced, not
        run."""
        super().__init__()
        self.tower: Any = tower
        self.kernel_EC, self.bias_E = first
        self.rotate = _rotate_fused if fused else _rotate

    def forward(self, pixel_values: Tensor, patch_positions: Tensor, patch_picture: Tensor) -> Tensor:
        """(N, C) from `Writer.pixels`, (N, 2), (N,) -> (V, D)."""
        tower = self.tower
        same_NN = patch_picture[:, None] == patch_picture[None, :]
        mask_NN = torch.where(same_NN, 0.0, -1e30).to(torch.float32)
        # The patch is exactly the kernel: a matrix product says the same and runs faster than a convolution.
        hidden_NE = functional.linear(pixel_values, self.kernel_EC, self.bias_E)
        angles = self._angles(patch_positions)
        cos, sin = angles.cos().to(hidden_NE.dtype), angles.sin().to(hidden_NE.dtype)
        for block in tower.blocks:
            hidden_NE = hidden_NE + self._attend(block.attn, block.norm1(hidden_NE), (cos, sin), mask_NN)
            hidden_NE = hidden_NE + block.mlp(block.norm2(hidden_NE))
        return tower.merger(hidden_NE)

    def _angles(self, patch_positions: Tensor) -> Tensor:
        """Rotary angles (N, W / 2), float32: those of the rows, then those of the columns. The tower's own module makes
        every angle twice, row and column apart: many nodes for a small table."""
        frequencies = self.tower.rotary_pos_emb.inv_freq.to(torch.float32)
        axes = torch.tensor([0, 1]).repeat_interleave(len(frequencies))
        return patch_positions.index_select(1, axes).to(torch.float32) * frequencies.repeat(2)

    def _attend(self, attn: Any, hidden_NE: Tensor, rotary: tuple[Tensor, Tensor], mask_NN: Tensor) -> Tensor:
        """Queries and keys turn together, as 2 H heads. The leading 1 is what the fused rotation asks for."""
        heads = attn.num_heads
        parts_1HNW = attn.qkv(hidden_NE).reshape(1, -1, 3 * heads, hidden_NE.shape[1] // heads).transpose(1, 2)
        turning_1HNW, value_1HNW = parts_1HNW.split((2 * heads, heads), dim=1)
        query_1HNW, key_1HNW = self.rotate(turning_1HNW, *rotary).split((heads, heads), dim=1)
        score_1HNN = (query_1HNW @ key_1HNW.transpose(2, 3)).to(torch.float32) * attn.scaling + mask_NN
        mixed_1HNW = score_1HNN.softmax(-1).to(value_1HNW.dtype) @ value_1HNW
        return attn.proj(mixed_1HNW.transpose(1, 2).reshape(-1, hidden_NE.shape[1]))


def folded(proj: Any, geometry: ImageGeometry) -> tuple[Tensor, Tensor]:
    """Kernel (E, C) and bias (E,) that make of `Writer.pixels` what the tower's own, (E, 3, T, p, p), makes of
    normalised pixels. All frames of a still picture are alike, so their kernels are summed."""
    # A normalised pixel is factor * number + offset, by colour; the number is (byte - PIXEL_CENTRE) * PIXEL_UNIT.
    mean_3, std_3 = (torch.tensor(values, dtype=torch.float64) for values in (geometry.image_mean, geometry.image_std))
    factor_3 = geometry.rescale_factor / PIXEL_UNIT / std_3
    offset_3 = (PIXEL_CENTRE * geometry.rescale_factor - mean_3) / std_3
    kernel_E3S = proj.weight.detach().to(torch.float64).sum(2).flatten(2)
    moved_E = (kernel_E3S.sum(2) * offset_3).sum(1)
    bias_E = moved_E if proj.bias is None else proj.bias.detach().to(torch.float64) + moved_E
    kernel_EC = (kernel_E3S * factor_3[:, None]).flatten(1)
    return kernel_EC.float(), bias_E.float()


def _rotate(x_1HNW: Tensor, cos_NV: Tensor, sin_NV: Tensor) -> Tensor:
    """Tables hold every angle once: V = W / 2."""
    first, second = x_1HNW.chunk(2, dim=-1)
    cos_NW, sin_NW = torch.cat((cos_NV, cos_NV), dim=-1), torch.cat((sin_NV, sin_NV), dim=-1)
    return x_1HNW * cos_NW + torch.cat((-second, first), dim=-1) * sin_NW


def _rotate_fused(x_1HNW: Tensor, cos_NV: Tensor, sin_NV: Tensor) -> Tensor:
    inputs = (x_1HNW, torch.zeros(1, dtype=torch.long), cos_NV, sin_NV)
    return torch.onnx.ops.symbolic(
        f"{CONTRIB}::RotaryEmbedding", inputs, dtype=x_1HNW.dtype, shape=x_1HNW.shape, version=1
    )  # fmt: skip


def traced_tower(tower: nn.Module, geometry: ImageGeometry, fp16: bool, fused: bool = False) -> ir.Graph:
    """The tower as torch.onnx sees it, for any number of patches of pictures that `geometry` describes; `fused` as in
    `TraceableTower`. Raises as `traced`."""
    # A copy in fp16: the traced graph refers to the module's own tensors, and the model must stay as it is.
    module = copy.deepcopy(tower).to(torch.float16) if fp16 else tower
    dtype = torch.float16 if fp16 else torch.float32
    kernel_EC, bias_E = folded(tower.get_submodule("patch_embed.proj"), geometry)
    traceable = TraceableTower(module, (kernel_EC.to(dtype), bias_E.to(dtype)), fused)
    merge = geometry.merge_size**2
    count = 4 * merge
    example = (
        torch.zeros(count, geometry.patch_bytes, dtype=dtype),
        torch.zeros(count, 2, dtype=torch.long),
        torch.zeros(count, dtype=torch.long),
    )
    free = {0: merge * torch.export.Dim("squares", min=1)}
    return traced(traceable, dict(zip(INPUTS, example, strict=True)), free)


def grafted(made: ir.Graph, dialect: Writer) -> Tower:
    """Writes a traced tower into a graph."""

    def write(g: Graph, given: Carried) -> Value:
        patches, *places = (given[name] for name in INPUTS)
        return graft(g, dialect, made, [dialect.pixels(g, patches), *places])

    return write


class Qwen2VLTower:
    """See export/graph/tower_writer.py."""

    def write(self, tower: nn.Module, geometry: ImageGeometry, dialect: Writer) -> Tower:
        """Traces the tower once; the result writes it into a graph."""
        return grafted(traced_tower(tower, geometry, dialect.target.computes_fp16, dialect.fused), dialect)

    def sizes(self, tower: nn.Module) -> TowerSizes:
        """The merger reads merged squares, all else patches."""
        config: Any = tower.config
        vision = merger = 0
        for name, parameter in tower.named_parameters():
            if parameter.dim() > 1 and "merger" in name:
                merger += parameter.numel()
            elif parameter.dim() > 1:
                vision += parameter.numel()
        width = int(getattr(config, "embed_dim", config.hidden_size))
        return TowerSizes(width=width, depth=int(config.depth), weights=vision, merger_weights=merger)


PART = Qwen2VLTower()
