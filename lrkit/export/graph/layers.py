"""One transformer layer and its attention, for the prompt, latent steps, refinement and speech alike.

Place in the pipeline: program.py and step_graphs.py stack `layer`; routing_nodes.py passes it again over the routed
tokens.

Attention is spelled out (MatMul, Add, Softmax, MatMul). TensorRT cannot use the fused operator inside a loop, and that
operator does not give the saliency row. Keys come in segments (read-only prompt, small carried cache), so that a loop
copies little.

Heads are sorted by key head. A chunk of many tokens has them as (Q, G, S). A chunk of few tokens, a latent step or a
spoken token, has them as (S, G, Q): a token's queries are then one matrix per key head, nothing is transposed, and
query, key and value come out of one rotation and one split. A latent step that replays many tokens turns its queries
round before attention (`together`), because every matrix packs all keys again.

Legend: S tokens of the chunk, N keys, H query heads, G key heads, Q = H / G, W head width, D width, A axes of
    positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.weight_store import CHUNKS
from lrkit.export.graph.writer import Rotation, Writer
from lrkit.export.weights.layer_recipe import Activation, Biased, Dimensions, LayerRecipe

SEEN = np.array(0.0, np.float32)
NEVER = np.array(-1e30, np.float32)
"""Added to the score of a key that must not be seen; scores and softmax are float32 in every precision."""
ACTIVATIONS: Mapping[Activation, Callable[[Graph, Writer, Value], Value]] = {
    "silu": lambda g, write, x: write.silu(g, x),
    "gelu": lambda g, write, x: g.op("Gelu", x),
    "gelu_tanh": lambda g, write, x: g.op("Gelu", x, approximate="tanh"),
}
"""`LayerRecipe.activation` -> who writes it."""


@dataclass(frozen=True)
class Mask:
    """What is added to the scores of one segment, float32."""

    rows: Value
    """(S, N), or (S, 1, 1, N) token by token; (1, N) where one row serves all."""
    last: Value
    """The last token's row, (1, N) or (1, 1, 1, N)."""


@dataclass(frozen=True)
class Segment:
    """Some of the keys of one layer."""

    keys: Value
    """(1, G, N, W)."""
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


@dataclass(frozen=True)
class Past:
    """Keys of one layer that a chunk reads but does not write."""

    segments: tuple[Segment, ...]
    lengths: Value | None
    """Keys in each, then the capacity of the cache that is written; None where there is no other."""


Remember = Callable[[Value, Value], Seen]
"""New keys and values, (1, G, S, W) or token by token (S, G, 1, W) -> what to attend to, the new keys among it."""


@dataclass
class Hidden:
    """A hidden state (S, D) whose last addition may still be open, so that it can be fused into the next norm."""

    x: Value
    added: Value | None = None

    def norm(self, g: Graph, dialect: Writer, role: str, many: bool = False) -> Value:
        """The normed state; closes the addition. `many` as in `Writer.add_norm`."""
        if self.added is None:
            return dialect.norm(g, self.x, role)
        normed, self.x = dialect.add_norm(g, self.x, self.added, role, many)
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
    dialect: Writer
    rows: list[Value] = field(default_factory=list)
    """Attention rows collected since the last `take_rows`, each (Q, G, 1, N) or (1, G, Q, N)."""

    def layer(
        self,
        g: Graph,
        number: int,
        hidden: Hidden,
        rotation: Rotation,
        remember: Remember,
        by_token: bool = False,
        only_last: bool = False,
        watch: bool = False,
        together: bool = False,
        many: bool = False,
    ) -> Hidden:
        """One layer over a chunk; `by_token` says how heads are sorted, and that `rotation` is a `head_rotation`.
        `only_last` returns the last token alone (all keys are remembered); `watch` keeps the last token's attention row
        for `take_saliency`; `together` attends with all tokens of a head at once, whatever `by_token` says; `many` says
        that the chunk is long, so that its products read the matrices of `chunks`."""
        read = self._read(g, hidden, f"{number}.norm1", many=not by_token)
        qkv = self._adapted_product(g, read, f"{number}.qkv", "qkv", many)
        many = many and not only_last
        query, key, value = self._split(g, qkv, number, rotation, by_token)
        seen = remember(key, value)
        if only_last:
            query = g.op("Gather", query, [-1], axis=0 if by_token else 2)
            hidden = Hidden(g.op("Gather", hidden.x, [-1], axis=0))
        if by_token and together:
            query = g.op("Transpose", query, perm=[2, 1, 0, 3])
        mixed = self._attend(g, query, seen, by_token and not together, only_last, watch)
        mixed = self._adapted_product(g, mixed, f"{number}.out", "out", many)
        hidden = Hidden(hidden.x, self._made(g, mixed, f"{number}.after1"))
        read = self._read(g, hidden, f"{number}.norm2", many=not (by_token or only_last))
        down = self._adapted_product(g, self._inner(g, read, number, many), f"{number}.down", "mlp", many)
        return Hidden(hidden.x, self._made(g, down, f"{number}.after2"))

    def _read(self, g: Graph, hidden: Hidden, role: str, many: bool) -> Value:
        """What attention or the feed-forward part reads."""
        if "before" in self.recipe.norm_places:
            return hidden.norm(g, self.dialect, role, many)
        return hidden.close(g)

    def _made(self, g: Graph, made: Value, role: str) -> Value:
        """What they add."""
        return self.dialect.norm(g, made, role) if "after" in self.recipe.norm_places else made

    def _product(self, g: Graph, x: Value, role: str, kind: Biased, many: bool) -> Value:
        bias = self.dialect.vector(g, f"{role}.bias") if kind in self.recipe.biases else None
        return self.dialect.linear(g, x, role, bias, part=CHUNKS if many else "layers")

    def _adapted_product(self, g: Graph, x: Value, role: str, kind: Biased, many: bool) -> Value:
        return self.dialect.branches.add(g, x, [role], [self._product(g, x, role, kind, many)])[0]

    def _inner(self, g: Graph, x: Value, number: int, many: bool) -> Value:
        """The state inside the feed-forward part: (S, D) -> (S, inner)."""
        activate = ACTIVATIONS[self.recipe.activation]

        def product(name: str) -> Value:
            return self._product(g, x, f"{number}.{name}", "mlp", many)

        if not self.recipe.gated:
            return activate(g, self.dialect, self._adapted_product(g, x, f"{number}.up", "mlp", many))
        shape, part = (self.dimensions.inner, self.dimensions.width), CHUNKS if many else "layers"
        products = self.dialect.gate_and_up(g, product, shape, part)
        gate, up = self.dialect.branches.add(g, x, [f"{number}.gate", f"{number}.up"], products)
        return g.op("Mul", activate(g, self.dialect, gate), up)

    def take_rows(self) -> list[Value]:
        """The rows watched since the last call, a layer each."""
        rows, self.rows = self.rows, []
        return rows

    def take_saliency(self, g: Graph) -> Value:
        """Mean over layers and heads of the rows watched since the last call: (N,), float32 (method section 2)."""
        rows = self.take_rows()
        return g.op("ReduceMean", g.op("Concat", *rows, axis=1), [0, 1, 2], keepdims=0)

    def angles(self, g: Graph, position: Value) -> Value:
        """Rotary angles (S, W / 2) of positions (S,) that are equal on all axes."""
        column = g.cast(g.op("Unsqueeze", position, [1]), ir.DataType.FLOAT)
        return g.op("Mul", column, np.array([self.dimensions.inverse_frequencies], np.float32))

    def head_rotation(self, g: Graph, position: Value, tokens: int = 1) -> Rotation:
        """The rotation of `tokens` tokens at position (tokens,), by rows of `_split`'s heads token by token: queries
        and key turn, the value stays."""
        turns = np.array(self.turns, np.float32)
        frequencies = turns[:, None] * np.array([self.dimensions.inverse_frequencies], np.float32)
        column = g.cast(g.op("Unsqueeze", position, [1] if tokens == 1 else [1, 2, 3]), ir.DataType.FLOAT)
        angles = g.op("Mul", column, frequencies)
        if tokens == 1:
            return self.dialect.rotation(g, angles)
        return self.dialect.head_rotation(g, angles, tokens, len(turns))

    def prompt_rotation(self, g: Graph, position: Value) -> Rotation:
        """The rotation of a prompt at position (A, P): each frequency turns with its own axis."""
        axes = list(self.dimensions.rotary_axes)
        spread = g.op("Gather", g.op("Transpose", position, perm=[1, 0]), axes, axis=1)
        frequencies = np.array([self.dimensions.inverse_frequencies], np.float32)
        return self.dialect.rotation(g, g.op("Mul", g.cast(spread, ir.DataType.FLOAT), frequencies))

    def rotation_with_turns(self, g: Graph, position: Value, start: Value, count: int) -> Rotation:
        """The same for ONNX Runtime, in a table that more can be looked up in: row 0 turns nothing, `count` rows are of
        positions from `start` [1] on, and the prompt's are behind them."""
        assert position.shape is not None, "an input of the program"
        zeros = np.zeros((int(str(position.shape[0])), 1), np.int64)
        ahead = g.op("Add", start, np.arange(count) + zeros)
        table = self.prompt_rotation(g, g.op("Concat", zeros, ahead, position, axis=1))
        return replace(table, numbers=g.value([count + 1]))

    def _split(
        self, g: Graph, qkv: Value, number: int, rotation: Rotation, by_token: bool
    ) -> tuple[Value, Value, Value]:
        """(S, G (Q + 2) W) -> rotated query (Q, G, S, W), rotated key and value (1, G, S, W); token by token
        (S, G, Q, W) and (S, G, 1, W)."""
        groups, share, width = self.dimensions.num_key_heads, self.share, self.dimensions.head_width
        heads = g.op("Reshape", qkv, [-1, groups, share + 2, width])
        if self.recipe.head_norm is not None:
            return self._split_normed(g, heads, number, rotation, by_token)
        if by_token:
            turned = self.dialect.rotate(g, heads, rotation, width)
            query, key, value = g.ops("Split", turned, [share, 1, 1], outputs=3, axis=2)
            return query, key, value
        heads = g.op("Transpose", heads, perm=[2, 1, 0, 3])
        turning, value = g.ops("Split", heads, [share + 1, 1], outputs=2, axis=0)
        turned = self.dialect.rotate(g, turning, rotation, width)
        query, key = g.ops("Split", turned, [share, 1], outputs=2, axis=0)
        return query, key, value

    def _split_normed(
        self, g: Graph, heads: Value, number: int, rotation: Rotation, by_token: bool
    ) -> tuple[Value, Value, Value]:
        """The same of heads (S, G, Q + 2, W) whose queries and keys have a norm."""
        norm, share, width = self.recipe.head_norm, self.share, self.dimensions.head_width
        assert norm is not None
        turning, value = g.ops("Split", heads, [share + 1, 1], outputs=2, axis=2)
        turning = self.dialect.head_norm(g, turning, f"{number}.head_norm", norm, width)
        if not by_token:
            turning, value = (g.op("Transpose", rows, perm=[2, 1, 0, 3]) for rows in (turning, value))
        turned = self.dialect.rotate(g, turning, rotation, width)
        query, key = g.ops("Split", turned, [share, 1], outputs=2, axis=2 if by_token else 0)
        return query, key, value

    def _attend(self, g: Graph, query: Value, seen: Seen, by_token: bool, only_last: bool, watch: bool) -> Value:
        """Queries as `_split` gives them, or the last token's alone -> (S, H W)."""
        dims = self.dimensions
        scores = [self._scores(g, query, segment, only_last) for segment in seen.segments]
        score = scores[0] if len(scores) == 1 else g.op("Concat", *scores, axis=-1)
        probability = g.op("Softmax", score, axis=-1)
        if watch:
            row = probability if only_last else g.op("Gather", probability, [-1], axis=0 if by_token else 2)
            self.rows.append(row)
        mixed = self._mix(g, g.to_floats(probability), seen)
        if not by_token:
            mixed = g.op("Transpose", mixed, perm=[2, 1, 0, 3])
        return g.op("Reshape", mixed, [-1, dims.num_heads * dims.head_width])

    def together(self, tokens: int) -> bool:
        """Whether the queries of so many tokens are better sorted by head: G matrices for each of Q heads, not of S
        tokens."""
        return tokens > max(4, self.share)

    @property
    def recipe(self) -> LayerRecipe:
        """What a layer is made of."""
        return self.dimensions.recipe

    @property
    def share(self) -> int:
        """Q, query heads per key head."""
        return self.dimensions.num_heads // self.dimensions.num_key_heads

    @property
    def turns(self) -> tuple[int, ...]:
        """By row of a key head that goes through a `head_rotation`: 1 where it turns. The value goes along and does not
        turn; where queries and keys have a norm, it has left them before."""
        return (1,) * (self.share + 1) + (() if self.recipe.head_norm else (0,))

    def _scores(self, g: Graph, query: Value, segment: Segment, only_last: bool) -> Value:
        score = g.to_float32(self.dialect.scores(g, query, segment.keys))
        if segment.mask is None:
            return score
        return g.op("Add", score, segment.mask.last if only_last else segment.mask.rows)

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
        """From bool, shaped as `Mask.rows`."""
        added = g.op("Where", visible, SEEN, NEVER)
        return Mask(added, g.op("Gather", added, [-1], axis=0))

    def row_mask(self, g: Graph, visible: Value) -> Mask:
        """From (1, N) bool: one row for every token of the chunk."""
        added = g.op("Where", visible, SEEN, NEVER)
        return Mask(added, added)
