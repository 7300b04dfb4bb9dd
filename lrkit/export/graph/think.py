"""Takes one latent step: the last hidden state is fed back as an input, behind the visual tokens that it replays.

Place in the pipeline: program.py puts it into a loop, step_graphs.py into a graph of its own.

Legend: S tokens of a latent step, K replayed and the latent; D width.
"""

from collections.abc import Mapping

import numpy as np

from lrkit.export.graph.caches import Caches, Latents
from lrkit.export.graph.latent_input import next_input
from lrkit.export.graph.layers import Remember
from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.pruning_nodes import Left
from lrkit.export.graph.replay_nodes import Replayed
from lrkit.export.graph.routing_nodes import Refined
from lrkit.export.graph.stack import INT64, Chunk, Passed, Stack


def think(g: Graph, caches: Caches, held: Carried, latents: Latents, iteration: Value | None = None) -> Carried:
    """The state after a step from `held`, and the rows that the loop collects. Without `alive` in the state it always
    moves. `iteration` () numbers the steps, where they are in a loop."""
    stack, new = caches.stack, dict(held)

    def step() -> Value:
        return latents.step(g, held, iteration)

    latent = next_input(g, stack.source, stack.dialect, held["hidden"], step)
    replayed = None
    if stack.replay.slots:
        replayed = stack.replay.select(g, latents.prompt, held["saliency"], held["free"])
    embeds, deep, valid, offsets, ahead = _tokens(g, stack, latent, replayed)
    at = latents.place(g, held, offsets, iteration)

    def remember(layer: int, _: Left | None) -> Remember:
        mask = at.behind if at.behind is not None and stack.is_behind(layer) else at.mask
        return caches.remember(g, layer, held, new, at.where, latents.past(layer), mask)

    refined = {i: Refined.of(i, held) for i in stack.routers}
    passed = stack.run(g, Chunk(embeds, at.rotation, at.routed_rotation, remember, refined, valid, at.step, deep=deep))
    decided = stack.decide(g, passed.hidden)
    moved = caches.moved(g, held, {"hidden": passed.hidden} | decided, ahead)
    if stack.tells_logits:
        new["logits"] = g.to_float32(decided["logits"])
    if replayed is not None:
        moved["free"] = replayed.free
        moved["saliency"] = caches.next_saliency(g, stack.saliency(g, latents.spread), latents.prompt)
    by_layer = None
    if passed.passes:
        by_layer, moved["routed_depths"] = _counted(g, stack, held, passed, at.step)
    rows = stack.reports.rows(g, passed.hidden, replayed, by_layer)
    reported, collected = caches.report(g, held, rows, at.step)
    for name, value in (moved | reported).items():
        new[name] = stack.dialect.keep(g, held.get("alive"), value, held[name], name in ("free", "wants"))
    for i, cache in passed.refined.items():
        new |= cache.state(i)
    return new | collected


def _tokens(
    g: Graph, stack: Stack, latent: Value, replayed: Replayed | None
) -> tuple[Value, Mapping[int, Value], Value | None, Value, Value]:
    """(embeddings (S, D), what is added behind deep layers, which tokens are real (S,), place of each after the last
    key (S,), number of real ones [1]).

    Real tokens take the places 0, 1, ...; the latent follows the last of them, unread slots come behind it."""
    if replayed is None:
        return latent, {}, None, g.value([0]), g.value([1])
    numbers = np.arange(stack.replay.num_tokens, dtype=np.int64)
    real = g.cast(replayed.valid, INT64)
    behind = g.op("Sub", numbers + 1, real)
    count = real if len(numbers) == 1 else g.op("ReduceSum", real, [0], keepdims=1)
    offsets = g.op("Concat", behind, count, axis=0)
    valid = g.op("Concat", replayed.valid, np.ones(1, bool), axis=0) if stack.routers else None
    further = stack.dims.row_width - stack.dims.width
    if further:
        latent = g.op("Concat", latent, np.zeros((1, further), g.floats.numpy()), axis=1)
    embeds, deep = stack.parted(g, g.op("Concat", replayed.tokens, latent, axis=0))
    return embeds, deep, valid, offsets, g.op("Add", count, [1])


def _counted(g: Graph, stack: Stack, held: Carried, passed: Passed, step: Value) -> tuple[Value, Value]:
    """(extra passes of the step's tokens (layers, S), those of all chunks so far, a row each)."""
    by_layer, row = stack.reports.by_layer(g, passed.passes)
    behind = g.op("Add", g.op("Unsqueeze", step, [1]), [1])
    return by_layer, g.op("ScatterND", held["routed_depths"], behind, row)
