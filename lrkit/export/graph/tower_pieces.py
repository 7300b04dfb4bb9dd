"""What the towers of several families are written with in a program: bytes folded into the first matrix, attention with
rotary angles, tracing over patches.

A family's `TowerWriter` (tower_writer.py) runs the tower's own modules around these. Everything that depends on the
grids is an input of the program, which the family's geometry computes.

Legend: N patches, C bytes of a patch, H heads, W head width, E width of the tower, I views of M patches
    each.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir
import torch
from torch import Tensor, nn

from lrkit.contract.bundle.io_spec import TensorSpec
from lrkit.export.graph.nodes import CONTRIB, Carried, Graph, Value
from lrkit.export.graph.tower_writer import Tower
from lrkit.export.graph.tracing import OWN, graft, traced
from lrkit.export.graph.writer import PIXEL_CENTRE, PIXEL_UNIT, Writer

Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (1, H, N, W), cos (N, W / 2), sin) -> x turned; tables hold every angle once."""

_PIXELS = "pixel_values"
WIDE = 512
"""Width of a tower from which on its attention goes picture by picture."""


class Levels(Protocol):
    """How bytes are normalised."""

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Subtracted, by colour."""
        ...

    @property
    def image_std(self) -> tuple[float, float, float]:
        """Divides, by colour."""
        ...

    @property
    def rescale_factor(self) -> float:
        """Multiplies the bytes before."""
        ...


class PatchGeometry(Protocol):
    """The part of a `Geometry` that cuts pictures into squares which merge."""

    @property
    def patch_bytes(self) -> int:
        """C."""
        ...

    @property
    def patches_per_token(self) -> int:
        """Patches of a merged square."""
        ...

    @property
    def tower_inputs(self) -> tuple[TensorSpec, ...]:
        """What the tower reads beside the patches; their first axis is N, others are fixed."""
        ...


def folded(proj: Any, levels: Levels) -> tuple[Tensor, Tensor]:
    """Kernel (E, C) and bias (E,) that make of `Writer.pixels` what the tower's own convolution, (E, 3, T, p, p) or
    (E, 3, p, p), makes of normalised pixels. All frames of a still picture are alike, so their kernels are summed."""
    # A normalised pixel is factor * number + offset, by colour; the number is (byte - PIXEL_CENTRE) * PIXEL_UNIT.
    mean_3, std_3 = (torch.tensor(values, dtype=torch.float64) for values in (levels.image_mean, levels.image_std))
    factor_3 = levels.rescale_factor / PIXEL_UNIT / std_3
    offset_3 = (PIXEL_CENTRE * levels.rescale_factor - mean_3) / std_3
    weight = proj.weight.detach().to(torch.float64)
    kernel_E3S = (weight.sum(2) if weight.dim() == 5 else weight).flatten(2)
    moved_E = (kernel_E3S.sum(2) * offset_3).sum(1)
    bias_E = moved_E if proj.bias is None else proj.bias.detach().to(torch.float64) + moved_E
    kernel_EC = (kernel_E3S * factor_3[:, None]).flatten(1)
    return kernel_EC.float(), bias_E.float()


class TowerOverPatches(nn.Module):
    """Base of towers that have everything that depends on the grids as an input; `forward` is the family's own."""

    view: int | None = None
    """M: each M patches are a picture of their own, all cut alike, and the inputs beside the patches are of one of
    them. None: these are of all patches, and say which picture each belongs to."""

    def __init__(self, tower: nn.Module, first: tuple[Tensor, Tensor], fused: bool) -> None:
        """`first` is what `folded` gave; `fused` as in `rotation`."""
        super().__init__()
        self.tower: Any = tower
        self.kernel_EC, self.bias_E = first
        self.rotate = rotation(fused)
        width = len(self.bias_E)
        # ONNX Runtime has the fused attention in fp16 on GPUs alone, and every program must run on a CPU. Few patches
        # of a narrow tower go through the spelled one in half the time: 64 of 16 heads in 0.11 ms, against 0.24.
        self.by_picture = fused and width >= WIDE and self.bias_E.dtype == torch.float32

    def seen(self, patch_picture: Tensor) -> "Seen":
        """What patches see in layers in which they see their whole picture."""
        masked = self.view is None and not self.by_picture
        return Seen(patch_picture, picture_mask(patch_picture) if masked else None, self.view)

    def placed(self, hidden_NE: Tensor, places_NE: Tensor) -> Tensor:
        """The sum with what places add to patches, of all or of one view."""
        if self.view is None:
            return hidden_NE + places_NE
        return (hidden_NE.unflatten(0, (-1, self.view)) + places_NE).flatten(0, 1)


@dataclass(frozen=True)
class Seen:
    """Which patches see each other."""

    picture: Tensor
    """(N,) the picture of each."""
    mask_NN: Tensor | None
    """Added to scores; None where attention goes by view, or picture by picture, in a node that can be traced, not
    run."""
    view: int | None
    """As in `TowerOverPatches`."""

    def mixed(self, parts: tuple[Tensor, Tensor, Tensor], scaling: float) -> Tensor:
        """Values (1, H, N, W), or by view (I, H, M, W), as each patch takes them: (N, H W)."""
        if self.mask_NN is not None or self.view is not None:
            return side_by_side(mixed(parts, self.mask_NN, scaling))
        _, heads, count, width = parts[2].shape
        return torch.onnx.ops.symbolic(
            f"{OWN}::AttentionByPicture", (*parts, self.picture), {"scale": float(scaling), "num_heads": int(heads)},
            dtype=parts[2].dtype, shape=(count, heads * width), version=1,
        )  # fmt: skip


def first_matrix(tower: nn.Module, levels: Levels, fp16: bool) -> tuple[Tensor, Tensor]:
    """`folded` of the tower's own patch embedding, in the type that the tower computes in."""
    dtype = torch.float16 if fp16 else torch.float32
    kernel_EC, bias_E = folded(tower.get_submodule("patch_embed.proj"), levels)
    return kernel_EC.to(dtype), bias_E.to(dtype)


def rotation(fused: bool) -> Rotate:
    """Turns heads by their halves; `fused` writes ONNX Runtime's own node: such a tower can be traced, not run."""
    return _rotate_fused if fused else _rotate


def _rotate(x_1HNW: Tensor, cos_NV: Tensor, sin_NV: Tensor) -> Tensor:
    first, second = x_1HNW.chunk(2, dim=-1)
    cos_NW, sin_NW = torch.cat((cos_NV, cos_NV), dim=-1), torch.cat((sin_NV, sin_NV), dim=-1)
    return x_1HNW * cos_NW + torch.cat((-second, first), dim=-1) * sin_NW


def _rotate_fused(x_1HNW: Tensor, cos_NV: Tensor, sin_NV: Tensor) -> Tensor:
    inputs = (x_1HNW, torch.zeros(1, dtype=torch.long), cos_NV, sin_NV)
    return torch.onnx.ops.symbolic(
        f"{CONTRIB}::RotaryEmbedding", inputs, dtype=x_1HNW.dtype, shape=x_1HNW.shape, version=1
    )  # fmt: skip


def picture_mask(patch_picture: Tensor) -> Tensor:
    """What is added to scores (N, N), float32, so that patches only see those of their own picture.

    One additive mask instead of a split by picture, because a split cannot be traced with a free number of pictures.
    """
    same_NN = patch_picture[:, None] == patch_picture[None, :]
    return torch.where(same_NN, 0.0, -1e30).to(torch.float32)


def row_and_column_angles(inverse_frequencies: Tensor, patch_positions: Tensor) -> Tensor:
    """Rotary angles (N, W / 2), float32, of patches at (row, column): those of the rows, then those of the columns. The
    towers' own modules make every angle twice, row and column apart: many nodes for a small table."""
    frequencies = inverse_frequencies.to(torch.float32)
    axes = torch.tensor([0, 1]).repeat_interleave(len(frequencies))
    return patch_positions.index_select(1, axes).to(torch.float32) * frequencies.repeat(2)


def attend(attn: Any, hidden_NE: Tensor, rotary: tuple[Tensor, Tensor], seen: Seen, rotate: Rotate) -> Tensor:
    """Attention of a tower whose `qkv` is one matrix; `rotary` are cos and sin (N, W / 2)."""
    return attn.proj(seen.mixed(turned_parts(attn, hidden_NE, rotary, rotate, seen.view), attn.scaling))


def turned_parts(
    attn: Any, hidden_NE: Tensor, rotary: tuple[Tensor, Tensor], rotate: Rotate, view: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Queries, keys and values (1, H, N, W), or by view (I, H, M, W). Queries and keys turn together, as 2 H heads."""
    heads = attn.num_heads
    # The leading 1 is what the fused rotation asks for.
    count = (1, -1) if view is None else (-1, view)
    parts_1HNW = attn.qkv(hidden_NE).reshape(*count, 3 * heads, hidden_NE.shape[1] // heads).transpose(1, 2)
    turning_1HNW, value_1HNW = parts_1HNW.split((2 * heads, heads), dim=1)
    query_1HNW, key_1HNW = rotate(turning_1HNW, *rotary).split((heads, heads), dim=1)
    return query_1HNW, key_1HNW, value_1HNW


def mixed(parts: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, scaling: float) -> Tensor:
    """Values (..., N, W), mixed by what the scores (..., N, N) and the mask that is added to them say."""
    query, key, value = parts
    score = (query @ key.transpose(2, 3)).to(torch.float32) * scaling
    score = score if mask is None else score + mask
    return score.softmax(-1).to(value.dtype) @ value


def side_by_side(mixed_1HNW: Tensor) -> Tensor:
    """Heads next to each other: (N, H W), of all views."""
    heads, width = mixed_1HNW.shape[1], mixed_1HNW.shape[3]
    return mixed_1HNW.transpose(1, 2).reshape(-1, heads * width)


def in_number_type(tower: nn.Module, fp16: bool) -> nn.Module:
    """The tower, or a copy in fp16: a traced graph refers to the module's own tensors, and the model must stay as it
    is."""
    return copy.deepcopy(tower).to(torch.float16) if fp16 else tower


def traced_over_patches(module: nn.Module, geometry: PatchGeometry, fp16: bool) -> ir.Graph:
    """A module that takes (N, C) from `Writer.pixels` and then what `tower_inputs` says, as torch.onnx sees it, for any
    number of merged squares. Raises as `traced`."""
    merge = geometry.patches_per_token
    count = 4 * merge
    example = {_PIXELS: torch.zeros(count, geometry.patch_bytes, dtype=torch.float16 if fp16 else torch.float32)}
    for spec in geometry.tower_inputs:
        rest = [side for side in spec.shape[1:] if isinstance(side, int)]
        example[spec.name] = torch.zeros(count, *rest, dtype=getattr(torch, spec.dtype))
    return traced(module, example, {0: merge * torch.export.Dim("squares", min=1)})


def grafted(made: ir.Graph, dialect: Writer) -> Tower:
    """Writes a traced tower into a graph: its inputs are those of the program with the same names, patches as the
    dialect turns bytes into numbers."""

    def write(g: Graph, given: Carried) -> Value:
        inputs = [given[str(value.name)] for value in made.inputs]
        pixels = [str(value.name) == _PIXELS for value in made.inputs]
        return graft(
            g, dialect, made, [dialect.pixels(g, v) if own else v for v, own in zip(inputs, pixels, strict=True)]
        )

    return write


def merged_weights(tower: nn.Module, merger: str) -> tuple[int, int]:
    """(numbers in the matrices that every patch goes through once, in those of every visual token); a name that holds
    `merger` is of the latter."""
    sizes = [(merger in name, value.numel()) for name, value in tower.named_parameters() if value.dim() > 1]
    return sum(n for merged, n in sizes if not merged), sum(n for merged, n in sizes if merged)
