"""What a look at the pictures leaves, as a program gives it and takes it back (docs/method.md: two parts of a prompt).

Place in the pipeline: read_prompt.py takes the state of an earlier look before it reads a prompt, and gives that of the
prompt that it read. Whoever looked gives all further tokens of the prompt in a second call: the question. Where nothing
was looked at, every array has no tokens, and the call has the whole prompt.

Legend: L tokens of the picture part, G key heads, W head width, E width of a visual token's row, R depth, A routed
    tokens.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lrkit.contract.bundle.io_spec import LEFT, PAST
from lrkit.export.graph.layers import NEVER, SEEN
from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.routing_nodes import Refined, Router
from lrkit.export.graph.stack import INT64, Stack
from lrkit.export.graph.tower_writer import Tower


@dataclass(frozen=True)
class Looked:
    """The state of an earlier look, taken apart."""

    num_tokens: Value
    """L, [1]."""
    keys: list[Value]
    """Per layer (1, G, L, W), as the values."""
    values: list[Value]
    ids: Value | None
    """(L,); None where nothing is replayed."""
    visual: Value | None
    """(V, E), as `ids`."""
    refined: dict[int, Refined] = field(default_factory=dict[int, Refined])
    """By routed layer: its cache."""


def see(g: Graph, stack: Stack, tower: Tower, given: Carried) -> Value:
    """Rows of the pictures' visual tokens, (V, E). A question behind a look has none: where the target branches, the
    tower then is not run, and there is one row, which nothing reads."""
    if stack.look is None or not stack.dialect.target.branches:
        return tower(g, given)
    is_visual = g.op("Equal", given["input_ids"], stack.source.image_id)
    some = g.op("Greater", g.op("ReduceSum", g.cast(is_visual, INT64), [0], keepdims=0), 0)
    nothing = np.zeros((1, stack.dims.row_width), g.floats.numpy())
    kind = g.floats, ("V", stack.dims.row_width)
    return g.either(some, lambda inner: tower(inner, given), lambda inner: inner.value(nothing), kind)


def take(g: Graph, stack: Stack, given: Carried) -> Looked | None:
    """From a program's inputs; None for a program without scenes."""
    if stack.look is None:
        return None
    past = {name.removeprefix(PAST): value for name, value in given.items() if name.startswith(PAST)}
    layers, heads, width = stack.look.num_layers, stack.look.num_key_heads, stack.look.head_width
    num_tokens = g.shape_of(past["keys"], 3)
    # Shapes are computed from no size of -1: of an empty array it could be any.
    shape = g.op("Concat", [2 * layers, heads], num_tokens, [width], axis=0)
    rows = g.op("Reshape", past["keys"], shape, allowzero=1)
    parts = g.ops("Split", rows, [1] * (2 * layers), outputs=2 * layers, axis=0)
    refined = {
        i: _refined(g, router, place, past, num_tokens) for place, (i, router) in enumerate(stack.routers.items())
    }
    return Looked(num_tokens, parts[::2], parts[1::2], past.get("ids"), past.get("visual"), refined)


def _refined(g: Graph, router: Router, place: int, past: Carried, num_tokens: Value) -> Refined:
    """The cache of a layer, the `place`-th that routes: what the look routed, then empty slots."""
    empty, alpha = router.empty(g), router.alpha
    own = g.op("Gather", past["refined"], [place], axis=0)
    halves = g.ops("Split", own, [1, 1], outputs=2, axis=1)
    seen = g.op("Squeeze", g.op("Gather", past["refined_seen"], [place], axis=0), [0])
    keys, values = (
        _before(g, g.op("Squeeze", half, [0, 1]), whole, alpha, router.num_slots, 2)
        for half, whole in zip(halves, (empty.keys, empty.values), strict=True)
    )
    masks = _before(g, g.op("Where", seen, SEEN, NEVER), empty.masks, alpha, router.num_slots, 1)
    return Refined(keys, values, masks, g.op("Min", num_tokens, [alpha]))


def _before(g: Graph, begin: Value, empty: Value, alpha: int, slots: int, axis: int) -> Value:
    """An empty cache with other slots in front, as many as the picture part has."""
    rest = g.op("Slice", empty, [alpha], [slots], [axis])
    return g.op("Concat", g.op("Slice", begin, [0], [alpha], [axis]), rest, axis=axis)


def leave(
    g: Graph, stack: Stack, keys: list[Value], values: list[Value], visual: Value, refined: dict[int, Refined]
) -> Carried:
    """What a program gives of the prompt that it read: its own keys and values, (1, G, P, W) per layer, and rows of its
    visual tokens; nothing of an earlier look."""
    look = stack.look
    if look is None:
        return {}
    layers = look.num_layers
    rows = g.op("Concat", *(one for pair in zip(keys, values, strict=True) for one in pair), axis=0)
    shape = g.op("Concat", [layers, 2, look.num_key_heads], g.shape_of(keys[0], 2), [look.head_width], axis=0)
    made: Carried = {f"{LEFT}keys": g.op("Reshape", rows, shape)}
    if look.row_width:
        made[f"{LEFT}visual"] = visual
    if look.refined:
        made |= _routed(g, stack, look.refined, refined)
    return made


def _routed(g: Graph, stack: Stack, slots: int, refined: dict[int, Refined]) -> Carried:
    """The slots of the picture part of all layers, in arrays with `slots` of them."""
    pairs: list[Value] = []
    seen: list[Value] = []
    for i, cache in refined.items():
        router = stack.routers[i]
        halves = [_first(g, whole, router, slots, 2, g.floats.numpy()) for whole in (cache.keys, cache.values)]
        pairs.append(g.op("Concat", *(g.op("Unsqueeze", half, [0, 1]) for half in halves), axis=1))
        there = g.op("Equal", cache.masks, SEEN)
        seen.append(g.op("Unsqueeze", _first(g, there, router, slots, 1, np.bool_), [0]))
    return {f"{LEFT}refined": g.op("Concat", *pairs, axis=0), f"{LEFT}refined_seen": g.op("Concat", *seen, axis=0)}


def _first(g: Graph, whole: Value, router: Router, slots: int, axis: int, kind: Any) -> Value:
    """The first A slots of that axis, and empty ones of `kind` up to `slots`."""
    part = g.op("Slice", whole, [0], [router.alpha], [axis])
    if router.alpha == slots:
        return part
    depth, heads, _, width = router.cache_shape
    short = slots - router.alpha
    return g.op(
        "Concat", part, np.zeros((depth, short) if axis == 1 else (depth, heads, short, width), kind), axis=axis
    )
