"""Reads the prompt: pictures' tokens put in place, all layers once, and the decision whether to think.

Place in the pipeline: the first chunk of every program; think.py and speak.py start from what it leaves.

Legend: P prompt tokens, those of an earlier look aside, L tokens of that look, V visual tokens, D width, E width of a
    visual token's row (`Dimensions.row_width`), G key heads, W head width.
"""

from dataclasses import dataclass, replace

import numpy as np

from lrkit.contract.bundle.io_spec import WINDOWS
from lrkit.export.graph.caches import Caches, Read
from lrkit.export.graph.layers import Mask, Remember, Seen, Segment
from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.pruning_nodes import Left, Pruning, num_visual
from lrkit.export.graph.replay_nodes import Prompt
from lrkit.export.graph.stack import INT64, Chunk, Stack
from lrkit.export.graph.two_parts import Looked, leave, take


def read_prompt(g: Graph, caches: Caches, given: Carried, visual: Value) -> Read:
    """Keys, the decision, and everything that latent steps start from. `given` are the program's inputs, `visual` the
    pictures' tokens (V, E)."""
    stack = caches.stack
    position, looked = given["position_ids"], take(g, stack, given)
    tokens = _tokens(g, stack, given["input_ids"], visual, looked)
    windows = stack.dialect.choosable(g, given[WINDOWS]) if WINDOWS in given else None
    prompt = replace(tokens.prompt, windows=windows)
    largest = g.op("ReduceMax", g.op("Reshape", position, [-1]), [0], keepdims=1)
    after = g.op("Add", largest, [1])
    rotations = caches.prompt_rotations(g, position, after)
    memory = Memory(g, tokens.mask, looked)
    refined = looked.refined if looked else {i: router.empty(g) for i, router in stack.routers.items()}
    embeds, deep = stack.parted(g, tokens.rows)
    parts = _parts(g, g.op("Equal", given["input_ids"], stack.source.image_id)) if stack.routers else None
    pruning = _pruning(g, stack, tokens, visual)
    chunk = Chunk(embeds, *rotations, memory.remember, refined, parts=parts, deep=deep, pruning=pruning)
    passed = stack.run(g, chunk)
    spread = None if passed.left is None else caches.prompt_spread(g, passed.left, tokens.prompt)
    state: Carried = {"hidden": passed.hidden} | stack.decide(g, passed.hidden)
    state["prefill_logits"] = g.to_float32(g.op("Squeeze", state["logits"], [0]))
    state["position"] = after
    if stack.replay.slots:
        saliency = stack.saliency(g, spread)
        state["saliency"] = caches.widened(g, saliency, np.float32)
        state["free"] = caches.widened(g, tokens.is_visual, np.bool_)
    for i, cache in passed.refined.items():
        state |= cache.state(i)
    if stack.routers:
        state["routed_prompt"], row = stack.reports.by_layer(g, passed.passes)
        rest = np.zeros((stack.steps, len(stack.routers)), np.int64)
        state["routed_depths"] = g.op("Concat", row, rest, axis=0)
    state |= leave(g, stack, memory.own_keys, memory.own_values, visual, passed.refined)
    return Read(state, prompt, memory.keys, memory.values, rotations[0], passed.left)


def _pruning(g: Graph, stack: Stack, tokens: "Tokens", visual: Value) -> Pruning | None:
    if not stack.settings.prune.active:
        return None
    by_shape = not stack.dialect.target.branches
    count = num_visual(g, stack.geometry, tokens.is_visual, visual, by_shape)
    return Pruning(stack.settings.prune, tokens.is_visual, count)


class Memory:
    """The prompt's keys, behind those of an earlier look."""

    def __init__(self, g: Graph, mask: Mask, looked: Looked | None) -> None:
        self._g, self._mask, self._looked = g, mask, looked
        self.keys: list[Value] = []
        self.values: list[Value] = []
        """Per layer (1, G, L + P, W)."""
        self.own_keys: list[Value] = []
        self.own_values: list[Value] = []
        """Per layer (1, G, P, W)."""

    def remember(self, layer: int, left: Left | None = None) -> Remember:
        """Where the keys of a layer go, of all tokens or of those left."""
        mask = self._mask if left is None else left.mask

        def remember(key: Value, value: Value) -> Seen:
            self.own_keys.append(key)
            self.own_values.append(value)
            if self._looked is not None:
                key = self._g.op("Concat", self._looked.keys[layer], key, axis=2)
                value = self._g.op("Concat", self._looked.values[layer], value, axis=2)
            self.keys.append(key)
            self.values.append(value)
            return Seen((Segment(key, value, mask),))

        return remember


@dataclass(frozen=True)
class Tokens:
    """The tokens of a call, and those of an earlier look."""

    rows: Value
    """(P, E) of the call's own."""
    is_visual: Value
    """(L + P,) bool, or of the call's own alone where nothing is replayed."""
    prompt: Prompt
    """What latent steps read."""
    mask: Mask
    """(P, L + P)."""


def _tokens(g: Graph, stack: Stack, ids: Value, visual: Value, looked: Looked | None) -> Tokens:
    count = g.shape_of(ids, 0)
    total = count if looked is None else g.op("Add", looked.num_tokens, count)
    column = g.op("Range", 0, g.op("Squeeze", total, [0]), 1)
    row = column if looked is None else g.op("Slice", column, looked.num_tokens, total, [0])
    mask = stack.decoder.mask(g, g.op("LessOrEqual", g.op("Unsqueeze", column, [0]), g.op("Unsqueeze", row, [1])))
    if looked is not None and looked.ids is not None:
        ids, visual = g.op("Concat", looked.ids, ids, axis=0), g.op("Concat", looked.visual, visual, axis=0)
    is_visual = g.op("Equal", ids, stack.source.image_id)
    number = g.op("Sub", g.op("CumSum", g.cast(is_visual, INT64), 0), [1])
    rows = own = _embedded(g, stack, ids, is_visual, g.op("Gather", visual, g.op("Max", number, [0]), axis=0))
    if looked is not None and looked.ids is not None:
        own = g.op("Slice", rows, looked.num_tokens, total, [0])
    return Tokens(own, is_visual, Prompt(rows, number, total), mask)


def _parts(g: Graph, is_visual: Value) -> Value:
    """Which of the call's own tokens the picture part has, up to and with the last visual one, and which the question
    part: (2, P)."""
    number = g.op("CumSum", g.cast(is_visual, INT64), 0, exclusive=1)
    total = g.op("ReduceSum", g.cast(is_visual, INT64), [0], keepdims=1)
    pictures = g.op("Unsqueeze", g.op("Less", number, total), [0])
    return g.op("Concat", pictures, g.op("Not", pictures), axis=0)


def _embedded(g: Graph, stack: Stack, ids: Value, is_visual: Value, rows: Value) -> Value:
    """Input embeddings of tokens, and what they add behind each deep layer: `rows` where they are visual."""
    placed = g.op("Unsqueeze", is_visual, [1])
    if not stack.dims.deep_layers:
        return g.op("Where", placed, rows, stack.dialect.embed(g, ids))
    width = stack.dims.width
    visual, deep = g.ops("Split", rows, [width, stack.dims.row_width - width], outputs=2, axis=1)
    embeds = g.op("Where", placed, visual, stack.dialect.embed(g, ids))
    return g.op("Concat", embeds, g.op("Where", placed, deep, 0.0), axis=1)
