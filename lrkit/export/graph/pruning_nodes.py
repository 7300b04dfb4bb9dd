"""Visual-token pruning in the graph (docs/method.md, section 8): behind one layer of the prompt, the visual tokens with
the least saliency leave.

Place in the pipeline: read_prompt.py gives the prompt's chunk a `Pruning`, stack.py asks it behind its layer who stays;
caches and latent steps read what is left from `Left` and `Spread`.

Legend: P prompt tokens, Q of them that stay, V visual tokens, N columns that a chunk sees in the layers up to the
    pruned one, M columns in those behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lrkit.contract.settings import PruneSettings
from lrkit.errors import ExportError
from lrkit.export.graph.layers import Decoder, Mask
from lrkit.export.graph.nodes import Graph, Value
from lrkit.families.protocols import Geometry

INT64, FLOAT32 = ir.DataType.INT64, ir.DataType.FLOAT
BEHIND = "Q"
"""Name of the axis that counts the tokens of a prompt that stay."""
UNSEEN = np.array(-1.0, np.float32)
"""Below every probability: text is not ranked."""


@dataclass(frozen=True)
class Left:
    """Which tokens of the prompt stay."""

    index: Value
    """(Q,) columns of the prompt, ascending."""
    num_tokens: Value
    """Q, [1]."""
    mask: Mask
    """(Q, Q)."""


@dataclass(frozen=True)
class Spread:
    """Where what is seen in the layers behind lies among what is seen in those up to the pruned one."""

    index: Value
    """(M,) columns of N."""
    nothing: Value
    """(N,) zeros, float32."""


@dataclass(frozen=True)
class Pruning:
    """Of one prompt."""

    settings: PruneSettings
    is_visual: Value
    """(P,) bool."""
    num_visual: Value
    """V, [1]."""

    def choose(self, g: Graph, decoder: Decoder, rows: Sequence[Value]) -> Left:
        """Who stays, by the last token's attention rows in all layers so far."""
        score = g.op("ReduceMean", g.op("Concat", *rows, axis=1), [0, 1, 2], keepdims=0)
        share = g.op("Mul", self.num_visual, [self.settings.share])
        count = g.op("Div", g.op("Add", share, [999]), [1000])
        _, best = g.ops("TopK", g.op("Where", self.is_visual, score, UNSEEN), count, outputs=2, axis=0)
        yes = g.op("ConstantOfShape", count, value=ir.tensor(np.ones(1, bool)))
        stays = g.op("ScatterElements", g.op("Not", self.is_visual), best, yes, axis=0)
        size = g.shape_of(self.is_visual, 0)
        left = g.op("Add", g.op("Sub", size, self.num_visual), count)
        # Each token that stays writes its column to its place; the others share one place behind these.
        place = g.op("CumSum", g.cast(stays, INT64), 0, exclusive=1)
        room = g.op("ConstantOfShape", g.op("Add", left, [1]), value=ir.tensor(np.zeros(1, np.int64)))
        column = g.op("Range", 0, g.op("Squeeze", size, [0]), 1)
        index = g.op("ScatterElements", room, g.op("Where", stays, place, left), column, axis=0)
        number = g.op("Range", 0, g.op("Squeeze", left, [0]), 1)
        visible = g.op("LessOrEqual", g.op("Unsqueeze", number, [0]), g.op("Unsqueeze", number, [1]))
        return Left(g.op("Slice", index, [0], left, [0]), left, decoder.mask(g, visible))


def num_visual(g: Graph, geometry: Geometry, is_visual: Value, visual: Value, by_shape: bool) -> Value:
    """V, [1]. `by_shape`: from the shape of the pictures' tokens (V, E), for engines that take sizes from shapes alone.

    Raises:
        ExportError: then a prompt without a picture would have to have visual tokens of its own.
    """
    if not by_shape:
        return g.op("ReduceSum", g.cast(is_visual, INT64), [0], keepdims=1)
    blank = geometry.program_feed([], -1, [], None)["pixel_values"]
    if len(blank) != geometry.patches_per_token:
        raise ExportError(
            "no program of the dialect standard can be built with prune.after_layer for this family, whose prompts "
            "without a picture are given a whole one to look at; export with dialect: ort, or set it to null"
        )
    return g.shape_of(visual, 0)


def pruned_saliency(g: Graph, rows: Sequence[Value], first: int, spread: Spread, num_heads: int) -> Value:
    """Mean over layers and heads, (N,) float32, of a token's attention rows, of which the first `first` are of N
    columns and the others of M: what has been pruned is not seen there."""
    seen, behind = (
        g.op("ReduceSum", g.op("Concat", *part, axis=1), [0, 1, 2], keepdims=0) for part in (rows[:first], rows[first:])
    )
    total = g.op("Add", seen, g.op("ScatterElements", spread.nothing, spread.index, behind, axis=0))
    return g.op("Mul", total, np.array(1 / (len(rows) * num_heads), np.float32))
