"""Routing depth scaling in the graph (method section 5): hard tokens pass again through their layer.

Place in the pipeline: program.py calls `Router.route` after each routed layer of the prompt and of every latent step.

Keys of the refined pass live in slots: the prompt's routed tokens first, then those of each latent step. Slots are in the order
of the tokens, so a token may see the slots up to its own; a slot whose token stopped early stays masked.

Legend: S tokens of the chunk, A routed tokens, N slots, R depth, G key heads, W head width, D width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from lrkit.export.decoder import NEVER, SEEN, Decoder, Hidden, Mask, Seen, Segment
from lrkit.export.dialect import Rotation
from lrkit.export.graph import Carried, Graph, State, Value
from lrkit.model.settings import RoutingSettings

FLOAT32, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


@dataclass(frozen=True)
class Refined:
    """The refinement cache of one layer."""

    keys: Value
    """(R, G, N, W)."""
    values: Value
    """(R, G, N, W)."""
    masks: Value
    """(R, N) float32: 0 where a slot holds a key."""


@dataclass(frozen=True)
class Routed:
    """What routing did to one chunk in one layer."""

    hidden: Value
    """(S, D)."""
    cache: Refined
    passes: Value
    """Extra passes executed, summed over tokens; int64 [1]."""


class Router:
    """One routed layer."""

    def __init__(self, decoder: Decoder, settings: RoutingSettings, layer: int, latent_chunk: int, steps: int) -> None:
        """`latent_chunk` is the number of tokens of a latent step, `steps` the capacity in latent steps."""
        self.decoder, self.settings, self.layer = decoder, settings, layer
        self.alpha = settings.alpha_of(layer, decoder.dimensions.num_layers)
        self.step_alpha = min(self.alpha, latent_chunk)
        self.num_slots = self.alpha + steps * self.step_alpha

    @property
    def _role(self) -> str:
        return f"routers.{self.layer}"

    def empty(self, g: Graph) -> Refined:
        """A cache without keys."""
        shape = self.state_shapes()
        zeros = g.to_floats(g.op("ConstantOfShape", list(shape["keys"])))
        masks = g.op("ConstantOfShape", list(shape["masks"]), value=ir.tensor(NEVER.reshape(1)))
        return Refined(zeros, zeros, masks)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the three cache tensors."""
        dims = self.decoder.dimensions
        cache = (self.settings.depth, dims.num_key_heads, self.num_slots, dims.head_width)
        return {"keys": cache, "values": cache, "masks": (self.settings.depth, self.num_slots)}

    def route(
        self, g: Graph, hidden: Value, valid: Value | None, rotation: Rotation, cache: Refined, step: Value | None
    ) -> Routed:
        """Refines one chunk (S, D). `valid` (S,) marks real tokens (None: all are); `step` is the number of latent steps
        before this one, [1], or None for the prompt."""
        alpha = self.alpha if step is None else self.step_alpha
        first = [0] if step is None else g.op("Add", g.op("Mul", step, [alpha]), [self.alpha])
        score = self._score(g, hidden)
        padded, score, ready = self._pad(g, hidden, score, valid, alpha if step is None else 0)
        _, best = g.ops("TopK", score, [alpha], outputs=2, axis=0)
        index, _ = g.ops("TopK", best, [alpha], outputs=2, axis=0, largest=0)
        active = g.op("Gather", ready, index, axis=0)
        token = g.op("Gather", padded, index, axis=0)
        gate = g.op("Gather", self._gate(g, score, ready), index, axis=0)
        turn = self._rotation(g, rotation, index, active, cache, step is None)
        slots = g.op("Add", np.arange(alpha, dtype=np.int64), first)
        update, cache, passes = self._refine(g, token, gate, active, turn, cache, slots, alpha)
        new = g.op("Add", token, update)
        out = g.op("ScatterND", padded, g.op("Unsqueeze", index, [1]), new)
        if step is None:
            out = g.op("Slice", out, [0], g.shape_of(hidden, 0), [0])
        return Routed(out, cache, passes)

    def _score(self, g: Graph, x: Value) -> Value:
        """Router scores (S,), float32."""
        write, role = self.decoder.dialect, self._role
        names = ["router"] if self.settings.router == "linear" else ["router.0", "router.2"]
        for number, name in enumerate(names):
            bias = write.vector(g, f"{role}.{name}.bias", "routing")
            x = write.linear(g, x, f"{role}.{name}.weight", bias, part="routing")
            if number + 1 < len(names):
                x = g.op("Mul", x, g.op("Sigmoid", x))
        return g.to_float32(g.op("Squeeze", x, [1]))

    def _pad(
        self, g: Graph, hidden: Value, score: Value, valid: Value | None, extra: int
    ) -> tuple[Value, Value, Value]:
        """(hidden, score, valid) with `extra` unreal tokens behind, so that TopK always finds enough; unreal scores last."""
        if valid is None:
            valid = g.op("GreaterOrEqual", g.op("Range", 0, g.op("Squeeze", g.shape_of(hidden, 0), [0]), 1), 0)
        else:
            score = g.op("Where", valid, score, NEVER)
        if extra:
            width = self.decoder.dimensions.width
            hidden = g.op("Concat", hidden, np.zeros((extra, width), self.decoder.dialect.floats.numpy()), axis=0)
            score = g.op("Concat", score, np.full(extra, NEVER), axis=0)
            valid = g.op("Concat", valid, np.zeros(extra, bool), axis=0)
        return hidden, score, valid

    def _gate(self, g: Graph, score: Value, valid: Value) -> Value:
        if self.settings.gate == "sigmoid":
            return g.op("Sigmoid", score)
        return g.op("Softmax", g.op("Where", valid, score, NEVER), axis=-1)

    def _rotation(
        self, g: Graph, rotation: Rotation, index: Value, active: Value, cache: Refined, prompt: bool
    ) -> Rotation:
        """The chunk's own rotation at `index`, or one that counts all routed tokens (`rearrange`)."""
        if self.settings.positions == "keep":
            if prompt:  # the padding behind the prompt has no rotation of its own
                index = g.op("Min", index, g.op("Sub", g.shape_of(rotation.cos, 0), [1]))
            return rotation.rows(g, index)
        counted = g.op("CumSum", g.cast(active, INT64), 0)
        slots = g.op("GreaterOrEqual", g.op("Gather", cache.masks, 0, axis=0), SEEN)
        before = g.op("ReduceSum", g.cast(slots, INT64), [0], keepdims=1)
        position = g.op("Sub", g.op("Add", counted, before), [1])
        return self.decoder.dialect.rotation(g, self.decoder.angles(g, position))

    def _refine(
        self, g: Graph, token: Value, gate: Value, active: Value, turn: Rotation, cache: Refined, slots: Value,
        alpha: int,
    ) -> tuple[Value, Refined, Value]:
        """The depths: (sum over d of e(d) u(d), cache, passes)."""
        state: dict[str, Any] = {
            "token": token, "gate": gate, "active": active, "keys": cache.keys, "values": cache.values,
            "masks": cache.masks,
        }  # fmt: skip
        with g.scope("refine"):
            if self.settings.depth == 1 and self.settings.threshold == 0:
                done = self._pass(g, [0], state, turn, slots)
            else:
                done = self._depth_loop(g, state, turn, slots, alpha)
        return done["update"], Refined(done["keys"], done["values"], done["masks"]), done["passes"]

    def _depth_loop(self, g: Graph, state: Carried, turn: Rotation, slots: Value, alpha: int) -> Carried:
        """At most R passes; ends when no token is left."""
        floats, width = self.decoder.dialect.floats, self.decoder.dimensions.width
        state = state | {
            "active": self._still(g, state["active"], state["gate"]),
            "update": g.op("Mul", state["token"], 0.0),
            "passes": g.value([0]),
        }
        shapes = self.state_shapes()
        types: dict[str, tuple[ir.DataType, tuple[int | str, ...]]] = {
            "token": (floats, (alpha, width)), "update": (floats, (alpha, width)), "gate": (FLOAT32, (alpha,)),
            "active": (BOOL, (alpha,)), "keys": (floats, shapes["keys"]), "values": (floats, shapes["values"]),
            "masks": (FLOAT32, shapes["masks"]), "passes": (INT64, (1,)),
        }  # fmt: skip

        def body(inner: Graph, depth: Value, held: Carried) -> tuple[Value, Carried]:
            at = inner.op("Unsqueeze", depth, [0])
            new = self._pass(inner, at, held, turn, slots)
            new["gate"] = self._gate(inner, self._score(inner, new["token"]), held["active"])
            new["active"] = self._still(inner, held["active"], new["gate"])
            return self._any(inner, new["active"]), new

        carried = {name: State(value, *types[name]) for name, value in state.items()}
        return g.loop(g.value(self.settings.depth), self._any(g, state["active"]), carried, body)

    def _still(self, g: Graph, active: Value, gate: Value) -> Value:
        if self.settings.threshold == 0:
            return active
        return g.op("And", active, g.op("GreaterOrEqual", gate, np.array(self.settings.threshold, np.float32)))

    def _any(self, g: Graph, active: Value) -> Value:
        return g.op("Greater", g.op("ReduceSum", g.cast(active, INT64), [0], keepdims=0), 0)

    def _pass(self, g: Graph, depth: Any, held: Carried, turn: Rotation, slots: Value) -> Carried:
        """One refined pass of the layer at `depth` (index [1]) over the active tokens."""
        new: Carried = {}
        active = held["active"]
        at_slots = g.op("Unsqueeze", slots, [1])
        row = g.op("Gather", held["masks"], g.op("Squeeze", depth, [0]), axis=0)
        row = g.op("ScatterND", row, at_slots, g.op("Where", active, SEEN, NEVER))
        # A stopped token sees itself: an empty row would give it equal shares of everything, which is harmless but slow to read.
        visible = g.op("LessOrEqual", np.arange(self.num_slots, dtype=np.int64)[None], at_slots)
        added = g.op("Where", visible, g.op("Unsqueeze", row, [0]), NEVER)
        mask = Mask(g.op("Tile", added, [self.decoder.share, 1]), g.op("Gather", added, [-1], axis=0))

        def remember(key: Value, value: Value) -> Seen:
            places = self._places(g, slots)
            kept = {}
            for name, fresh in (("keys", key), ("values", value)):
                own = g.op("Gather", held[name], g.op("Squeeze", depth, [0]), axis=0)
                kept[name] = g.op("ScatterND", own, places, g.op("Transpose", fresh, perm=[1, 0, 2]))
                new[name] = self._put(g, held[name], depth, kept[name])
            return Seen((Segment(g.op("Transpose", kept["keys"], perm=[0, 2, 1]), kept["values"], mask),))

        refined = self.decoder.layer(g, self.layer, Hidden(held["token"]), turn, remember).close(g)
        gate = g.to_floats(g.op("Where", active, held["gate"], SEEN))
        token = g.op("Mul", refined, g.op("Unsqueeze", gate, [1]))
        encoding = g.op("Gather", self.decoder.dialect.vector(g, f"{self._role}.step_encoding_RD", "routing"), depth)
        update = g.op("Mul", token, encoding)
        passes = g.op("ReduceSum", g.cast(active, INT64), [0], keepdims=1)
        new["masks"] = self._put(g, held["masks"], depth, row)
        new["token"] = token
        new["update"] = g.op("Add", held["update"], update) if "update" in held else update
        new["passes"] = g.op("Add", held["passes"], passes) if "passes" in held else passes
        return new

    def _put(self, g: Graph, stack: Value, depth: Any, one: Value) -> Value:
        """`stack` (R, ...) with entry `depth` replaced; the whole where there is one depth."""
        whole = g.op("Unsqueeze", one, [0])
        if self.settings.depth == 1:
            return whole
        return g.op("ScatterND", stack, g.op("Unsqueeze", depth, [1]), whole)

    def _places(self, g: Graph, slots: Value) -> Value:
        return places(g, slots, self.decoder.dimensions.num_key_heads)


def places(g: Graph, slots: Value, num_key_heads: int) -> Value:
    """Indices (G, S, 2) that write (G, S, W) into a cache (G, N, W) at `slots` (S,)."""
    column = g.op("Reshape", slots, [1, -1, 1])
    heads = np.zeros((num_key_heads, 1, 2), np.int64)
    heads[:, 0, 0] = np.arange(num_key_heads)
    return g.op("Add", g.op("Mul", column, np.array([[[0, 1]]])), heads)
