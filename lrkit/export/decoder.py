"""One transformer layer and its attention, written once: the prompt, latent steps, refinement and speech all use this
code.

Place in the pipeline: program.py and step.py stack `layer`; routing.py passes it again over the routed tokens.

Attention is spelled out (MatMul, Add, Softmax, MatMul) because the fused operator cannot be used inside a loop by
TensorRT and does not give the saliency row; keys come in segments (read-only prompt, small carried cache), so that a
loop copies little.

Legend: S tokens of the chunk, N keys, H query heads, G key heads, Q = H / G, W head width, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lrkit.export.dialect import Dialect, Rotation
from lrkit.export.graph import Graph, Value
from lrkit.export.source import Dimensions

SEEN = np.array(0.0, np.float32)
NEVER = np.array(-1e30, np.float32)
"""Added to the score of a key that must not be seen; scores and softmax are float32 in every precision."""


@dataclass(frozen=True)
class Mask:
    """What is added to the scores of one segment, float32."""

    tiled: Value
    """(Q S, N): the (S, N) mask once per query head of a group; (1, N) where one row serves all."""
    last: Value
    """(1, N): the last token's row."""


@dataclass(frozen=True)
class Segment:
    """Some of the keys of one layer."""

    keys: Value
    """(1, G, W, N)."""
    values: Value
    """(1, G, N, W)."""
    mask: Mask | None = None
    """None where every query sees every key."""


@dataclass(frozen=True)
class Seen:
    """All keys that a chunk may attend to."""

    segments: tuple[Segment, ...]
    lengths: Value | None = None
    """Keys per segment, int64; made outside the loops. Needed where there are several."""


Remember = Callable[[Value, Value], Seen]
"""New keys and values (1, G, S, W) -> what to attend to, the new keys among it."""


@dataclass
class Hidden:
    """A hidden state (S, D) whose last addition may still be open, so that it can be fused into the next norm."""

    x: Value
    added: Value | None = None

    def norm(self, g: Graph, dialect: Dialect, role: str) -> Value:
        """The normed state; closes the addition."""
        if self.added is None:
            return dialect.norm(g, self.x, role)
        normed, self.x = dialect.add_norm(g, self.x, self.added, role)
        self.added = None
        return normed

    def close(self, g: Graph) -> Value:
        """The state itself."""
        if self.added is not None:
            self.x, self.added = g.op("Add", self.x, self.added), None
        return self.x


@dataclass
class Decoder:
    """Layers of one language model."""

    dimensions: Dimensions
    dialect: Dialect
    rows: list[Value] = field(default_factory=list)
    """Attention rows collected since the last `take_saliency`, each (1, H, 1, N)."""

    def layer(
        self,
        g: Graph,
        number: int,
        hidden: Hidden,
        rotation: Rotation,
        remember: Remember,
        single: bool = False,
        only_last: bool = False,
        watch: bool = False,
    ) -> Hidden:
        """One layer over a chunk; `single` says that S is 1. `only_last` returns the last token alone (its keys are
        all remembered); `watch` keeps the last token's attention row for `take_saliency`."""
        dims, write = self.dimensions, self.dialect
        normed = hidden.norm(g, write, f"{number}.norm1")
        qkv = write.linear(g, normed, f"{number}.qkv", write.vector(g, f"{number}.qkv.bias"))
        query, key, value = self._split(g, qkv, rotation, single)
        seen = remember(key, value)
        if only_last and not single:
            query = g.op("Gather", query, [-1], axis=2)
            hidden = Hidden(g.op("Gather", hidden.x, [-1], axis=0))
        mixed = self._attend(g, query, seen, single or only_last, watch)
        hidden = Hidden(hidden.x, write.linear(g, mixed, f"{number}.out"))
        normed = hidden.norm(g, write, f"{number}.norm2")
        inner = write.gated(g, write.linear(g, normed, f"{number}.gate_up"), dims.inner)
        return Hidden(hidden.x, write.linear(g, inner, f"{number}.down"))

    def take_saliency(self, g: Graph) -> Value:
        """Mean over layers and heads of the rows watched since the last call: (N,), float32 (method section 2)."""
        rows, self.rows = self.rows, []
        return g.op("ReduceMean", g.op("Concat", *rows, axis=1), [0, 1, 2], keepdims=0)

    def angles(self, g: Graph, position: Value) -> Value:
        """Rotary angles (S, W / 2) of positions (S,) that are equal in all three sections."""
        column = g.cast(g.op("Unsqueeze", position, [1]), ir.DataType.FLOAT)
        return g.op("Mul", column, np.array([self.dimensions.inverse_frequencies], np.float32))

    def prompt_angles(self, g: Graph, position: Value) -> Value:
        """The same for positions (3, S): each frequency turns with its own section."""
        sections = list(self.dimensions.rotary_sections)
        spread = g.op("Gather", g.op("Transpose", position, perm=[1, 0]), sections, axis=1)
        frequencies = np.array([self.dimensions.inverse_frequencies], np.float32)
        return g.op("Mul", g.cast(spread, ir.DataType.FLOAT), frequencies)

    def _split(self, g: Graph, qkv: Value, rotation: Rotation, single: bool) -> tuple[Value, Value, Value]:
        """(S, (H + 2 G) W) -> rotated query (1, H, S, W), rotated key and value (1, G, S, W)."""
        dims = self.dimensions
        turning, keys = dims.num_heads + dims.num_key_heads, dims.num_key_heads
        heads = [1, turning + keys, 1, dims.head_width] if single else [1, -1, turning + keys, dims.head_width]
        qkv = g.op("Reshape", qkv, heads)
        if not single:
            qkv = g.op("Transpose", qkv, perm=[0, 2, 1, 3])
        turned, value = g.ops("Split", qkv, [turning, keys], outputs=2, axis=1)
        turned = self.dialect.rotate(g, turned, rotation, dims.head_width)
        query, key = g.ops("Split", turned, [dims.num_heads, keys], outputs=2, axis=1)
        return query, key, value

    def _attend(self, g: Graph, query: Value, seen: Seen, single: bool, watch: bool) -> Value:
        """(1, H, S, W) -> (S, H W). Queries of one key head stand one below the other: (1, G, Q S, W)."""
        dims = self.dimensions
        stacked = g.op("Reshape", query, [1, dims.num_key_heads, -1, dims.head_width])
        scores = [self._scores(g, stacked, segment, single) for segment in seen.segments]
        score = scores[0] if len(scores) == 1 else g.op("Concat", *scores, axis=-1)
        probability = g.op("Softmax", score, axis=-1)
        if watch:
            by_head = g.op("Reshape", probability, [1, dims.num_heads, -1, 0])
            self.rows.append(by_head if single else g.op("Gather", by_head, [-1], axis=2))
        mixed = self._mix(g, g.to_floats(probability), seen)
        if not single:
            mixed = g.op("Reshape", mixed, [dims.num_heads, -1, dims.head_width])
            mixed = g.op("Transpose", mixed, perm=[1, 0, 2])
        return g.op("Reshape", mixed, [-1, dims.num_heads * dims.head_width])

    @property
    def share(self) -> int:
        """Q, query heads per key head."""
        return self.dimensions.num_heads // self.dimensions.num_key_heads

    def _scores(self, g: Graph, stacked: Value, segment: Segment, single: bool) -> Value:
        score = g.to_float32(g.op("MatMul", stacked, segment.keys))
        if segment.mask is None:
            return score
        return g.op("Add", score, segment.mask.last if single else segment.mask.tiled)

    def _mix(self, g: Graph, probability: Value, seen: Seen) -> Value:
        if len(seen.segments) == 1:
            return g.op("MatMul", probability, seen.segments[0].values)
        parts = g.ops("Split", probability, seen.lengths, outputs=len(seen.segments), axis=-1)
        products = [g.op("MatMul", p, s.values) for p, s in zip(parts, seen.segments, strict=True)]
        total = products[0]
        for product in products[1:]:
            total = g.op("Add", total, product)
        return total

    def mask(self, g: Graph, visible: Value) -> Mask:
        """From (S, N) bool."""
        added = g.op("Where", visible, SEEN, NEVER)
        return Mask(g.op("Tile", added, [self.share, 1]), g.op("Gather", added, [-1], axis=0))

    def row_mask(self, g: Graph, visible: Value) -> Mask:
        """From (1, N) bool: one row for every token of the chunk."""
        added = g.op("Where", visible, SEEN, NEVER)
        return Mask(added, added)
