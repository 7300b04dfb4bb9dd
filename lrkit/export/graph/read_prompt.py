"""Reads the prompt: pictures' tokens put in place, all layers once, and the decision whether to think.

Place in the pipeline: the first chunk of every program; think.py and speak.py start from what it leaves.

Legend: P prompt tokens, V visual tokens, D width, E width of a visual token's row (`Dimensions.row_width`).
"""

import numpy as np

from lrkit.export.graph.caches import Caches, Read
from lrkit.export.graph.layers import Seen, Segment
from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.replay_nodes import Prompt
from lrkit.export.graph.stack import INT64, Chunk


def read_prompt(g: Graph, caches: Caches, given: Carried, visual: Value) -> Read:
    """Keys, the decision, and everything that latent steps start from. `given` are the program's inputs, `visual` the
    pictures' tokens (V, E)."""
    stack = caches.stack
    decoder, ids, position = stack.decoder, given["input_ids"], given["position_ids"]
    is_visual = g.op("Equal", ids, stack.source.image_id)
    prompt = _embedded(g, caches, ids, is_visual, visual)
    number = g.op("Range", 0, g.op("Squeeze", prompt.num_tokens, [0]), 1)
    mask = decoder.mask(g, g.op("LessOrEqual", g.op("Unsqueeze", number, [0]), g.op("Unsqueeze", number, [1])))
    largest = g.op("ReduceMax", g.op("Reshape", position, [-1]), [0], keepdims=1)
    after = g.op("Add", largest, [1])
    rotations = caches.prompt_rotations(g, position, after)
    keys: list[Value] = []
    values: list[Value] = []

    def remember(key: Value, value: Value) -> Seen:
        keys.append(key)
        values.append(value)
        return Seen((Segment(key, value, mask),))

    refined = {i: router.empty(g) for i, router in stack.routers.items()}
    embeds, deep = stack.parted(g, prompt.rows)
    passed = stack.run(g, Chunk(embeds, *rotations, lambda layer: remember, refined, deep=deep))
    state: Carried = {"hidden": passed.hidden} | stack.decide(g, passed.hidden)
    state["prefill_logits"] = g.to_float32(g.op("Squeeze", state["logits"], [0]))
    state["position"] = after
    if stack.replay.slots:
        saliency = decoder.take_saliency(g)
        state["saliency"] = caches.widened(g, saliency, np.float32)
        state["free"] = caches.widened(g, is_visual, np.bool_)
    for i, cache in passed.refined.items():
        state |= cache.state(i)
    if stack.routers:
        state["routed_prompt"], row = stack.reports.by_layer(g, passed.passes)
        rest = np.zeros((stack.steps, len(stack.routers)), np.int64)
        state["routed_depths"] = g.op("Concat", row, rest, axis=0)
    return Read(state, prompt, keys, values, rotations[0])


def _embedded(g: Graph, caches: Caches, ids: Value, is_visual: Value, visual: Value) -> Prompt:
    count = g.op("Sub", g.op("CumSum", g.cast(is_visual, INT64), 0), [1])
    rows = g.op("Gather", visual, g.op("Max", count, [0]), axis=0)
    stack, placed = caches.stack, g.op("Unsqueeze", is_visual, [1])
    if not stack.dims.deep_layers:
        return Prompt(g.op("Where", placed, rows, stack.dialect.embed(g, ids)), count, g.shape_of(ids, 0))
    width = stack.dims.width
    own, deep = g.ops("Split", rows, [width, stack.dims.row_width - width], outputs=2, axis=1)
    embeds = g.op("Where", placed, own, stack.dialect.embed(g, ids))
    return Prompt(g.op("Concat", embeds, g.op("Where", placed, deep, 0.0), axis=1), count, g.shape_of(ids, 0))
