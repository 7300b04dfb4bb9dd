"""Routing depth scaling in the graph (method section 5): hard tokens pass again through their layer.

Place in the pipeline: stack.py calls `Router.route` after each routed layer of the prompt and of every latent step.

Of a prompt, the picture part and the question part choose their tokens apart, so that the first never depends on the
second; both are refined together.

Keys of the refined pass live in slots: those of the picture part's routed tokens first, then the question part's, then
those of each latent step. Slots are in the order of the tokens, so a token may see the slots up to its own; a slot
whose token stopped early stays masked.

Legend: S tokens of the chunk, A routed tokens, N slots, R depth, G key heads, W head width, D width.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from lrkit.contract.settings import RoutingSettings
from lrkit.export.graph.layers import NEVER, SEEN, Decoder, Hidden, Mask, Seen, Segment
from lrkit.export.graph.nodes import Carried, Graph, State, Value
from lrkit.export.graph.table_rows import choice
from lrkit.export.graph.writer import Rotation, Writer

FLOAT32, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
LAST = np.array(2**31)
"""Where what is no token sorts, behind all tokens."""


@dataclass(frozen=True)
class Refined:
    """The refinement cache of one layer."""

    keys: Value
    """(R, G, N, W)."""
    values: Value
    """(R, G, N, W)."""
    masks: Value
    """(R, N) float32: 0 where a slot holds a key."""
    count: Value
    """Tokens routed in earlier chunks, int64 [1]: what `rearrange` counts on from."""

    def state(self, layer: int) -> Carried:
        """By the names under which a loop carries it."""
        return {f"refined{layer}_{name}": getattr(self, name) for name in ("keys", "values", "masks", "count")}

    @classmethod
    def of(cls, layer: int, held: Carried) -> "Refined":
        """From what a loop carries."""
        return cls(*(held[f"refined{layer}_{name}"] for name in ("keys", "values", "masks", "count")))


@dataclass(frozen=True)
class Routed:
    """What routing did to one chunk in one layer."""

    hidden: Value
    """(S, D)."""
    cache: Refined
    passes: Value
    """Extra passes executed by each token of the chunk; int64 (S,)."""


def _sigmoid(g: Graph, write: Writer, score: Value, valid: Value | None) -> Value:
    # ONNX Runtime 1.32's Sigmoid is 1e-4 off, as a part of its value, at -8, and 1 at -17. A gate scales a token that
    # the next pass normalizes, which brings that error back to full size.
    return g.op("Div", np.array(1, np.float32), g.op("Add", g.op("Exp", g.op("Neg", score)), np.array(1, np.float32)))


def _softmax(g: Graph, write: Writer, score: Value, valid: Value | None) -> Value:
    assert valid is not None
    return write.softmax(g, g.op("Where", valid, score, NEVER))


ROUTERS = {"linear": ("router",), "mlp": ("router.0", "router.2")}
"""`RoutingSettings.router` -> its matrices, with a SiLU in between."""
GATES = {"sigmoid": _sigmoid, "softmax": _softmax}
"""`RoutingSettings.gate` -> function of (graph, dialect, scores, which tokens are real)."""
POSITIONS = {"keep": False, "rearrange": True}
"""`RoutingSettings.positions` -> whether routed tokens get new positions, counted from 0."""


class Router:
    """One routed layer.

    Raises:
        ExportError: a setting that no program can be built for.
    """

    def __init__(self, decoder: Decoder, settings: RoutingSettings, layer: int, latent_chunk: int, steps: int) -> None:
        """`latent_chunk` is the number of tokens of a latent step, `steps` the capacity in latent steps."""
        self.decoder, self.settings, self.layer = decoder, settings, layer
        self.matrices = choice(ROUTERS, settings.router, "routing.router")
        self.gate = choice(GATES, settings.gate, "routing.gate")
        self.rearranges = choice(POSITIONS, settings.positions, "routing.positions")
        self.alpha = settings.alpha_of(layer, decoder.dimensions.num_layers)
        self.latent_chunk = latent_chunk
        self.step_alpha = min(self.alpha, latent_chunk)
        # TensorRT-RTX 1.7.1's builder dies of a loop whose states have a free size, as routed tokens of a prompt are.
        self.pads = not decoder.dialect.fused and self.loops
        self.num_slots = 2 * self.alpha + steps * self.step_alpha + self.pads

    @property
    def loops(self) -> bool:
        """Whether passes are in a loop."""
        return self.settings.depth > 1 or self.settings.threshold > 0

    @property
    def _role(self) -> str:
        return f"routers.{self.layer}"

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        """(R, G, N, W) of its keys."""
        dims = self.decoder.dimensions
        return self.settings.depth, dims.num_key_heads, self.num_slots, dims.head_width

    def empty(self, g: Graph) -> Refined:
        """A cache without keys."""
        depth = self.settings.depth
        zeros = g.to_floats(g.op("ConstantOfShape", list(self.cache_shape)))
        masks = g.op("ConstantOfShape", [depth, self.num_slots], value=ir.tensor(NEVER.reshape(1)))
        return Refined(zeros, zeros, masks, g.value([0]))

    def state_types(self) -> dict[str, tuple[ir.DataType, tuple[int | str, ...]]]:
        """Types and shapes by the names of `Refined.state`."""
        depth, floats = self.settings.depth, self.decoder.dialect.floats
        cache = (floats, self.cache_shape)
        types = {"keys": cache, "values": cache, "masks": (FLOAT32, (depth, self.num_slots)), "count": (INT64, (1,))}
        return {f"refined{self.layer}_{name}": kind for name, kind in types.items()}

    def route(
        self, g: Graph, hidden: Value, valid: Value | None, rotation: Rotation, cache: Refined, step: Value | None,
        parts: Value | None = None,
    ) -> Routed:  # fmt: skip
        """Refines one chunk (S, D). `valid` (S,) marks real tokens (None: all are); `step` is the number of latent
        steps before this one, [1]. Of the prompt both are None, and `parts` (2, S) says which tokens each part has."""
        if step is None:
            assert parts is not None
            return self._route_prompt(g, hidden, parts, rotation, cache)
        alpha = self.step_alpha
        score = self._score(g, hidden)
        if valid is None:
            valid = g.op("GreaterOrEqual", g.op("Range", 0, g.op("Squeeze", g.shape_of(hidden, 0), [0]), 1), 0)
        else:
            score = g.op("Where", valid, score, NEVER)
        gate = self._gate(g, score, valid, None)
        index, active, token = None, valid, hidden
        if alpha < self.latent_chunk:
            _, best = g.ops("TopK", score, [alpha], outputs=2, axis=0)
            index, _ = g.ops("TopK", best, [alpha], outputs=2, axis=0, largest=0)
            active, token, gate = (g.op("Gather", value, index, axis=0) for value in (valid, hidden, gate))
        first = g.op("Add", g.op("Mul", step, [alpha]), [2 * self.alpha])
        slots = g.op("Add", np.arange(alpha, dtype=np.int64), first)
        turn, count = self._rotation(g, rotation, index, active, cache)
        update, cache, passes = self._refine(g, token, gate, active, turn, cache, slots, alpha)
        return self._written(g, hidden, index, g.op("Add", token, update), passes, replace(cache, count=count))

    def _route_prompt(self, g: Graph, hidden: Value, parts: Value, rotation: Rotation, cache: Refined) -> Routed:
        score = self._score(g, hidden)
        index, slots, active = self._chosen(g, score, parts)
        pictures, padded, at = g.op("Squeeze", g.op("Gather", parts, [0], axis=0), [0]), hidden, index
        gate = self._gate(g, score, None, pictures)
        if self.pads:
            spare = np.zeros((1, self.decoder.dimensions.width), self.decoder.dialect.floats.numpy())
            padded, at = g.op("Concat", hidden, spare, axis=0), g.op("Min", index, g.shape_of(hidden, 0))
            index = g.op("Min", index, g.op("Sub", g.shape_of(hidden, 0), [1]))
        turn, count = self._rotation(g, rotation, index, active, cache)
        token = g.op("Gather", padded, at, axis=0)
        gate, pictures = g.op("Gather", gate, index, axis=0), g.op("Gather", pictures, index, axis=0)
        size = 2 * self.alpha if self.pads else f"A{self.layer}"
        update, cache, passes = self._refine(g, token, gate, active, turn, cache, slots, size, pictures)
        routed = self._written(g, padded, at, g.op("Add", token, update), passes, replace(cache, count=count))
        if not self.pads:
            return routed
        out, passes = (
            g.op("Slice", value, [0], g.shape_of(hidden, 0), [0]) for value in (routed.hidden, routed.passes)
        )
        return replace(routed, hidden=out, passes=passes)

    def _chosen(self, g: Graph, score: Value, parts: Value) -> tuple[Value, Value, Value]:
        """(tokens that either part routes, ascending, their slots, which of them there are); where that number must be
        fixed, tokens behind the last one fill up, with the spare slot."""
        alpha = self.alpha
        ranked = g.op("Where", parts, g.op("Unsqueeze", score, [0]), NEVER)
        # So that TopK always finds enough.
        ranked = g.op("Concat", ranked, np.full((2, alpha), NEVER), axis=1)
        best, index = g.ops("TopK", ranked, [alpha], outputs=2, axis=1)
        found = g.op("Greater", best, NEVER)
        index = g.op("Reshape", g.op("Where", found, index, LAST), [2 * alpha])
        index, _ = g.ops("TopK", index, [2 * alpha], outputs=2, axis=0, largest=0)
        counts = g.op("ReduceSum", g.cast(found, INT64), [1], keepdims=0)
        number, place = g.op("ReduceSum", counts, [0], keepdims=1), np.arange(2 * alpha)
        pictures = g.op("Gather", counts, [0], axis=0)
        behind = g.op("Add", g.op("Sub", place, pictures), [alpha])
        slots = g.op("Where", g.op("Less", place, pictures), place, behind)
        if self.pads:
            active = g.op("Less", place, number)
            return index, g.op("Where", active, slots, self.num_slots - 1), active
        index, slots = (g.op("Slice", value, [0], number, [0]) for value in (index, slots))
        return index, slots, g.op("ConstantOfShape", number, value=ir.tensor(np.ones(1, bool)))

    def _written(
        self, g: Graph, hidden: Value, index: Value | None, out: Value, passes: Value, cache: Refined
    ) -> Routed:  # fmt: skip
        """The chunk with its routed tokens refined; `index` None: all are."""
        if index is None:
            return Routed(out, cache, passes)
        at = g.op("Unsqueeze", index, [1])
        nobody = g.op("ConstantOfShape", g.shape_of(hidden, 0), value=ir.tensor(np.zeros(1, np.int64)))
        return Routed(g.op("ScatterND", hidden, at, out), cache, g.op("ScatterND", nobody, at, passes))

    def _score(self, g: Graph, x: Value) -> Value:
        """Router scores (S,), float32."""
        write, role = self.decoder.dialect, self._role
        for number, name in enumerate(self.matrices):
            bias = write.vector(g, f"{role}.{name}.bias", "routing")
            x = write.linear(g, x, f"{role}.{name}.weight", bias, part="routing")
            if number + 1 < len(self.matrices):
                x = g.op("Mul", x, g.op("Sigmoid", x))
        return g.to_float32(g.op("Squeeze", x, [1]))

    def _rotation(
        self, g: Graph, rotation: Rotation, index: Value | None, active: Value, cache: Refined
    ) -> tuple[Rotation, Value]:
        """The chunk's own rotation at `index`, or one that counts all routed tokens (`rearrange`); and that count."""
        if not self.rearranges:
            return rotation if index is None else rotation.rows(g, index), cache.count
        counted = g.op("Add", g.op("CumSum", g.cast(active, INT64), 0), cache.count)
        turn = self.decoder.dialect.rotation(g, self.decoder.angles(g, g.op("Sub", counted, [1])))
        return turn, g.op("Gather", counted, [-1], axis=0)

    def _refine(
        self,
        g: Graph,
        token: Value,
        gate: Value,
        active: Value,
        turn: Rotation,
        cache: Refined,
        slots: Value,
        alpha: int | str,
        pictures: Value | None = None,
    ) -> tuple[Value, Refined, Value]:
        """The depths: (sum over d of e(d) u(d), cache, passes of each token)."""
        state: dict[str, Any] = {
            "token": token, "gate": gate, "active": active, "keys": cache.keys, "values": cache.values,
            "masks": cache.masks,
        }  # fmt: skip
        with g.scope("refine"):
            if self.loops:
                done = self._depth_loop(g, state, turn, slots, alpha, pictures)
            else:
                done = self._pass(g, [0], state, turn, slots)
        refined = Refined(done["keys"], done["values"], done["masks"], cache.count)
        return done["update"], refined, done["passes"]

    def _depth_loop(
        self, g: Graph, state: Carried, turn: Rotation, slots: Value, alpha: int | str, pictures: Value | None
    ) -> Carried:
        """At most R passes; ends when no token is left."""
        floats, width = self.decoder.dialect.floats, self.decoder.dimensions.width
        state = state | {
            "active": self._still(g, state["active"], state["gate"]),
            "update": g.op("Mul", state["token"], 0.0),
            "passes": g.op("ConstantOfShape", g.shape_of(state["active"], 0), value=ir.tensor(np.zeros(1, np.int64))),
        }
        caches = self.state_types()
        types: dict[str, tuple[ir.DataType, tuple[int | str, ...]]] = {
            "token": (floats, (alpha, width)), "update": (floats, (alpha, width)), "gate": (FLOAT32, (alpha,)),
            "active": (BOOL, (alpha,)), "passes": (INT64, (alpha,)),
        }  # fmt: skip
        types |= {name: caches[f"refined{self.layer}_{name}"] for name in ("keys", "values", "masks")}

        def body(inner: Graph, depth: Value, held: Carried) -> tuple[Value, Carried]:
            at = inner.op("Unsqueeze", depth, [0])
            new = self._pass(inner, at, held, turn, slots)
            new["gate"] = self._gate(inner, self._score(inner, new["token"]), held["active"], pictures)
            new["active"] = self._still(inner, held["active"], new["gate"])
            return self._any(inner, new["active"]), new

        carried = {name: State(value, *types[name]) for name, value in state.items()}
        return g.loop(g.value(self.settings.depth), self._any(g, state["active"]), carried, body)

    def _gate(self, g: Graph, score: Value, real: Value | None, pictures: Value | None) -> Value:
        """Gates (S,) of tokens that are `real`, None: all are. Of the prompt, whose picture part has `pictures`, each
        part's tokens share the gate `softmax` among themselves."""
        if pictures is None or self.settings.gate == "sigmoid":
            return self.gate(g, self.decoder.dialect, score, real)
        parts = pictures, g.op("Not", pictures)
        kept = parts if real is None else [g.op("And", real, part) for part in parts]
        return g.op("Where", pictures, *(self.gate(g, self.decoder.dialect, score, part) for part in kept))

    def _still(self, g: Graph, active: Value, gate: Value) -> Value:
        if self.settings.threshold == 0:
            return active
        return g.op("And", active, g.op("GreaterOrEqual", gate, np.array(self.settings.threshold, np.float32)))

    def _any(self, g: Graph, active: Value) -> Value:
        return g.op("Greater", g.op("ReduceSum", g.cast(active, INT64), [0], keepdims=0), 0)

    def _pass(self, g: Graph, depth: Any, held: Carried, turn: Rotation, slots: Value) -> Carried:
        """One refined pass of the layer at `depth` (index [1]) over the active tokens."""
        new: Carried = {}
        active, one = held["active"], self.settings.depth == 1
        at = g.op("Unsqueeze", slots, [1])

        def own(name: str) -> Value:
            return held[name] if one else g.op("Gather", held[name], depth, axis=0)

        row = g.op("Unsqueeze", g.op("Where", active, SEEN, NEVER), [0])
        row = g.op("ScatterElements", own("masks"), g.op("Unsqueeze", slots, [0]), row, axis=1)
        visible = g.op("LessOrEqual", np.arange(self.num_slots, dtype=np.int64)[None], at)
        added = g.op("Where", visible, row, NEVER)
        mask = Mask(added, g.op("Gather", added, [-1], axis=0))
        where = places(g, slots, self.decoder.dimensions.num_key_heads)
        kept = {"masks": row}

        def remember(key: Value, value: Value) -> Seen:
            for name, fresh in (("keys", key), ("values", value)):
                kept[name] = g.op("ScatterND", own(name), where, fresh)
            return Seen((Segment(kept["keys"], kept["values"], mask),))

        refined = self.decoder.layer(g, self.layer, Hidden(held["token"]), turn, remember).close(g)
        # Where before the product: what a stopped token computed is multiplied by exactly 0.
        gate = g.to_floats(g.op("Where", active, held["gate"], SEEN))
        token = g.op("Mul", refined, g.op("Unsqueeze", gate, [1]))
        encodings = self.decoder.dialect.vector(g, f"{self._role}.step_encoding_RD", "routing")
        update = g.op("Mul", token, encodings if one else g.op("Gather", encodings, depth, axis=0))
        passes = g.cast(active, INT64)
        for name, value in kept.items():
            new[name] = value if one else g.op("ScatterND", held[name], g.op("Unsqueeze", depth, [1]), value)
        new["token"] = token
        new["update"] = g.op("Add", held["update"], update) if "update" in held else update
        new["passes"] = g.op("Add", held["passes"], passes) if "passes" in held else passes
        return new


def places(g: Graph, slots: Value, num_key_heads: int) -> Value:
    """Indices (1, G, S, 3) that write (1, G, S, W) into a cache (1, G, N, W) at `slots` (S,)."""
    return places_by_token(g, g.op("Reshape", slots, [1, 1, -1, 1]), num_key_heads)


def places_by_token(g: Graph, slots: Value, num_key_heads: int) -> Value:
    """Indices (S, G, 1, 3) that write (S, G, 1, W) there; `slots` (S, 1, 1, 1)."""
    heads = np.zeros((1, num_key_heads, 1, 3), np.int64)
    heads[0, :, 0, 1] = np.arange(num_key_heads)
    return g.op("Add", g.op("Mul", slots, np.array([0, 0, 1])), heads)
