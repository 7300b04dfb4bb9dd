"""The fake family's tower in a program: traced as it is, but for its first matrix, which reads bytes."""

import copy
from typing import Any

import torch
from torch import nn

from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.tower_writer import Tower, TowerSizes
from lrkit.export.graph.tracing import graft, traced
from lrkit.export.graph.writer import PIXEL_CENTRE, PIXEL_UNIT, Writer
from tests.fake_family.geometry import RowwiseGeometry

INPUTS = ("pixel_values", "patch_places")


class RowwiseTower:
    """Implements `TowerWriter` (lrkit/export/graph/tower_writer.py)."""

    def write(self, tower: nn.Module, geometry: RowwiseGeometry, dialect: Writer) -> Tower:
        dtype = torch.float16 if dialect.target.computes_fp16 else torch.float32
        example = (torch.zeros(4, geometry.patch_bytes, dtype=dtype), torch.zeros(4, 3, dtype=torch.long))
        free = {0: torch.export.Dim("patches", min=1)}
        made = traced(_reads_bytes(tower).to(dtype), dict(zip(INPUTS, example, strict=True)), free)

        def write(g: Graph, given: Carried) -> Value:
            patches, places = (given[name] for name in INPUTS)
            return graft(g, dialect, made, [dialect.pixels(g, patches), places])

        return write

    def sizes(self, tower: nn.Module) -> TowerSizes:
        eye: Any = tower
        used = {name: p.numel() for name, p in eye.named_parameters() if p.dim() > 1 and "row" not in name}
        merger = sum(used.pop(name) for name in list(used) if name == "out.weight" or name.startswith("deep."))
        used.pop("column.weight")
        width = eye.patch.out_features
        return TowerSizes(width=width, depth=len(eye.blocks), weights=sum(used.values()), merger_weights=merger)


def _reads_bytes(tower: nn.Module) -> nn.Module:
    """A copy whose first matrix makes of `Writer.pixels` what the tower's makes of `Geometry.pixel_values`."""
    eye: Any = copy.deepcopy(tower)
    weight = eye.patch.weight.detach().double()
    eye.patch.bias.data = (eye.patch.bias.double() + weight.sum(1) * (PIXEL_CENTRE - 127.5) / 127.5).float()
    eye.patch.weight.data = (weight / (127.5 * PIXEL_UNIT)).float()
    return eye


PART = RowwiseTower()
