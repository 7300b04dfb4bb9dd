"""Chameleon's tower in a program, for an export. Implements `TowerWriter` (export/graph/tower_writer.py).

The encoder's own convolutions run, over pictures that are put together from their patches. The quantizer's choice is
looked up in the table of words, and the words in the model's own token embedding, which a program stores once.

The tower computes in float32 in every precision, and its weights stay float32. A choice of codes is no number that may
be a little off: another code is another word. With random weights at 512 x 512 pixels, 7% of the codes are others in
float16, and still 0.8% where only the distances are float32; in float32 all are the same.

Legend: N patches, C bytes of a patch, D width of the language model.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.tower_writer import Tower, TowerSizes, chosen
from lrkit.export.graph.tracing import graft, traced
from lrkit.export.graph.writer import PIXEL_CENTRE, PIXEL_UNIT, Writer
from lrkit.families.chameleon.geometry import SquareGeometry
from lrkit.families.chameleon.work import products

_PIXELS = "pixel_values"


class TwoPassNorm(nn.Module):
    """A group norm that takes the mean off before it squares. ONNX's own takes the squared mean off the mean of
    squares: where a picture is nearly even, what is left of float32 is noise, which chooses other codes. (A grey
    picture through random weights: 23 of 1,024 codes are not torch's, with this norm 11.)"""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        """The same as the norm itself."""
        norm, (_, channels, height, width) = self.norm, hidden_BCHW.shape
        grouped = hidden_BCHW.reshape(-1, norm.num_groups, channels // norm.num_groups * height * width)
        grouped = grouped - grouped.mean(2, keepdim=True)
        grouped = grouped / ((grouped * grouped).mean(2, keepdim=True) + norm.eps).sqrt()
        scale, shift = (values[:, None, None] for values in (norm.weight, norm.bias))
        return grouped.reshape(-1, channels, height, width) * scale + shift


def with_two_pass_norms(tower: nn.Module) -> nn.Module:
    """A copy of the tower, which shares its weights."""
    shared = {id(value): value for value in tower.parameters()}
    copied = copy.deepcopy(tower, memo=dict(shared))
    for name, module in list(copied.named_modules()):
        if isinstance(module, nn.GroupNorm):
            at, _, last = name.rpartition(".")
            setattr(copied.get_submodule(at), last, TwoPassNorm(module))
    return copied


class TraceableCodes(nn.Module):
    """Pictures to codes."""

    def __init__(self, tower: nn.Module, geometry: SquareGeometry) -> None:
        super().__init__()
        self.tower: Any = with_two_pass_norms(tower)
        self.grid, self.side = geometry.smallest_grid, geometry.token_side
        # A normalised pixel is factor * number + offset, by colour; the number is (byte - PIXEL_CENTRE) * PIXEL_UNIT.
        # It is not folded into the first convolution: what that adds around a picture are normalised zeros.
        levels = (torch.tensor(v, dtype=torch.float64) for v in (geometry.image_mean, geometry.image_std))
        mean_3, std_3 = (values[:, None, None] for values in levels)
        self.factor_311 = (geometry.rescale_factor / PIXEL_UNIT / std_3).float()
        self.offset_311 = ((PIXEL_CENTRE * geometry.rescale_factor - mean_3) / std_3).float()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, C) from `Writer.pixels` -> codes (N,)."""
        (rows, columns), side = self.grid, self.side
        tiles = pixel_values.reshape(-1, rows, columns, 3, side, side).permute(0, 3, 1, 4, 2, 5)
        pictures = tiles.reshape(-1, 3, rows * side, columns * side) * self.factor_311 + self.offset_311
        hidden = self.tower.quant_conv(self.tower.encoder(pictures))
        return self.tower.quantize(hidden)[2]


class ChameleonTower:
    """See export/graph/tower_writer.py."""

    chooses = True

    def write(self, tower: nn.Module, geometry: SquareGeometry, dialect: Writer) -> Tower:
        """Traces the encoder once; the result writes it into a graph, and looks up its words there."""
        count = geometry.most_patches(1)
        example = {_PIXELS: torch.zeros(2 * count, geometry.patch_bytes)}
        made = traced(TraceableCodes(tower, geometry), example, {0: count * torch.export.Dim("pictures", min=1)})
        words: Any = tower.get_buffer("words")

        def write(g: Graph, given: Carried) -> Value:
            pixels = g.to_float32(dialect.pixels(g, given[_PIXELS]))
            codes = graft(g, dialect, made, [pixels])
            return dialect.embed(g, chosen(g.op("Gather", words.numpy(), codes, axis=0)))

        return write

    def sizes(self, tower: nn.Module) -> TowerSizes:
        """One layer of attention; all else by `products`."""
        config: Any = tower.config
        width = config.base_channels * config.channel_multiplier[-1]
        return TowerSizes(width=width, depth=1, weights=products(tower), merger_weights=0)


PART = ChameleonTower()
