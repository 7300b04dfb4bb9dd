"""A tower over windows: pictures of one small cut, any number of them, each of which sees itself alone.

Place in the pipeline: where replay is fine, a latent step reads the windows that it looks at here. Families whose
towers are a `TowerOverPatches` share it.

Everything that depends on a window's cut is a constant, and attention is one batched product by window. The other way,
all windows as pictures of one prompt behind a mask, computes K times as many scores.

Legend: K windows of M patches, C bytes of a patch.
"""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.tower_pieces import TowerOverPatches
from lrkit.export.graph.tower_writer import WindowTower
from lrkit.export.graph.tracing import graft, traced
from lrkit.export.graph.writer import Writer

_INNER, _PIXELS = "inner.", "pixel_values"
Traceable = Callable[[nn.Module, Any, bool, bool], TowerOverPatches]
"""(tower, geometry, fp16, fused) -> the tower as it is traced."""


class TraceableWindows(nn.Module):
    """A `TowerOverPatches` that reads windows of one cut alone."""

    def __init__(self, inner: TowerOverPatches, geometry: Any) -> None:
        super().__init__()
        inner.view = geometry.num_patches(geometry.window_grid)
        self.inner = inner
        feed = geometry.tower_feed([geometry.window_grid])
        self.places = [torch.tensor(feed[spec.name]) for spec in geometry.tower_inputs]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(K M, C) from `Writer.pixels` -> rows of the windows' visual tokens."""
        return self.inner(pixel_values, *self.places)


def traced_windows(inner: TowerOverPatches, geometry: Any, fp16: bool) -> ir.Graph:
    """The tower over windows of `geometry` as torch.onnx sees it, for any number of them; weights have the names that
    they have in the tower over pictures. Raises as `traced`."""
    module = TraceableWindows(inner, geometry)
    assert inner.view is not None
    dtype = torch.float16 if fp16 else torch.float32
    example = {_PIXELS: torch.zeros(2 * inner.view, geometry.patch_bytes, dtype=dtype)}
    made = traced(module, example, {0: inner.view * torch.export.Dim("windows", min=1)})
    constants = [node.outputs[0] for node in made if node.op_type == "Constant"]
    for value in [*made.initializers.values(), *constants]:
        # What belongs to this trace alone must not be taken for what another trace called by the same number.
        name = str(value.name)
        value.name = name.removeprefix(_INNER) if name.startswith(_INNER) else f"windows.{name}"
    return made


def grafted_windows(made: ir.Graph, dialect: Writer, patch_bytes: int) -> WindowTower:
    """Writes what `traced_windows` gave into a graph, inside a loop too."""

    def write(g: Graph, windows: Value) -> Value:
        with g.scope("windows"):
            return graft(g, dialect, made, [g.op("Reshape", windows, [-1, patch_bytes])])

    return write


def write_windows(traceable: Traceable, tower: nn.Module, geometry: Any, dialect: Writer) -> WindowTower:
    """Both of a family's tower, in the types of the dialect."""
    fp16 = dialect.target.computes_fp16
    made = traced_windows(traceable(tower, geometry, fp16, dialect.fused), geometry, fp16)
    return grafted_windows(made, dialect, geometry.patch_bytes)
