"""What latent steps report, a row per step: hidden state, replayed tokens and their weights, routed passes.

Place in the pipeline: think.py makes a step's rows. The loop over joined caches collects them (`collected`). TensorRT's
loops cannot, and neither can a host's. With separate caches they are therefore written into states that have a row for
every step (`written`).

Legend: T most latent steps, K replay slots, D width, S tokens of a latent step.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lrkit.contract.bundle.io_spec import EMPTY
from lrkit.export.graph.nodes import Carried, Graph, Kind, Value
from lrkit.export.graph.replay_nodes import Replayed

Types = dict[str, Kind]
"""Name of a state -> its type and shape."""


@dataclass(frozen=True)
class LatentReports:
    """The reports of one reasoner; sizes as in the legend."""

    steps: int
    width: int
    slots: int
    layers: int
    """Layers that route."""
    chunk: int

    @property
    def types(self) -> Types:
        """Type and shape of each report, all steps."""
        return {name: (dtype, (self.steps, *shape)) for name, (dtype, shape) in self._sizes.items()}

    @property
    def row_types(self) -> Types:
        """The same of one step's row, as `rows` makes it."""
        types: Types = {**self._sizes}
        types["latent_states"] = (ir.DataType.FLOAT, (1, self.width))
        return types

    def empty(self, g: Graph) -> Carried:
        """Reports before the first step."""
        return {name: g.value(blank) for name, blank in self._blank().items()}

    def rows(self, g: Graph, hidden: Value, replayed: Replayed | None, passes: Value | None) -> Carried:
        """A step's rows; `hidden` (1, D), `passes` (layers, S)."""
        made = {"latent_states": g.to_float32(hidden)}
        if replayed is not None:
            made |= {"replayed": replayed.index, "replay_weights": replayed.weights}
        if passes is not None:
            made["routed_latents"] = passes
        return made

    def by_layer(self, g: Graph, passes: list[Value]) -> tuple[Value, Value]:
        """Passes of a chunk's tokens: (layers, S), and their sums (1, layers)."""
        tokens = g.op("Concat", *(g.op("Unsqueeze", each, [0]) for each in passes), axis=0)
        return tokens, g.op("Unsqueeze", g.op("ReduceSum", tokens, [1], keepdims=0), [0])

    def written(self, g: Graph, held: Carried, rows: Carried, step: Value) -> Carried:
        """The reports with the rows of `step` [1] in them."""
        at, made = g.op("Unsqueeze", step, [1]), dict(rows)
        for name, row in rows.items():
            whole = row if name == "latent_states" else g.op("Unsqueeze", row, [0])
            made[name] = g.op("ScatterND", held[name], at, whole)
        return made

    def collected(self, g: Graph, rows: Carried) -> Carried:
        """The reports, from the rows of the steps that were taken, one behind the other."""
        made: Carried = {}
        for name, blank in self._blank().items():
            filler = blank[:, None] if name == "latent_states" else blank
            whole = g.op("Slice", g.op("Concat", rows[name], filler, axis=0), [0], [self.steps], [0])
            made[name] = g.op("Reshape", whole, list(blank.shape)) if name == "latent_states" else whole
        return made

    def _blank(self) -> dict[str, np.ndarray]:
        fill = {"replayed": EMPTY}
        return {
            name: np.full((self.steps, *shape), fill.get(name, 0), dtype.numpy())
            for name, (dtype, shape) in self._sizes.items()
        }

    @property
    def _sizes(self) -> dict[str, tuple[ir.DataType, tuple[int, ...]]]:
        """Type and shape of one step's part of each report."""
        sizes: dict[str, tuple[ir.DataType, tuple[int, ...]]] = {"latent_states": (ir.DataType.FLOAT, (self.width,))}
        if self.slots:
            sizes["replayed"] = (ir.DataType.INT64, (self.slots,))
            sizes["replay_weights"] = (ir.DataType.FLOAT, (self.slots,))
        if self.layers:
            sizes["routed_latents"] = (ir.DataType.INT64, (self.layers, self.chunk))
        return sizes
