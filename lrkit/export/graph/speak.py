"""Speaks one token: the token of the state is fed, the next is read off the head.

Place in the pipeline: program.py puts it into a loop, step_graphs.py into a graph of its own.
"""

from lrkit.export.graph.caches import Caches, PastOf
from lrkit.export.graph.layers import Hidden
from lrkit.export.graph.nodes import Carried, Graph


def speak(g: Graph, caches: Caches, held: Carried, past: PastOf) -> Carried:
    """The state after a token from `held`; `past` are the keys of the prompt and of latent steps. Without `alive` in
    the state it always moves."""
    stack, new, alive = caches.stack, dict(held), held.get("alive")
    rotation = stack.decoder.head_rotation(g, held["position"])
    remember = caches.remember_spoken(g, held, new, past)
    hidden = Hidden(stack.dialect.embed(g, held["token"]))
    for i in range(stack.dims.num_layers):
        with g.scope(f"layer{i}"):
            hidden = stack.decoder.layer(g, i, hidden, rotation, remember(i), by_token=True)
    token, logits = stack.said(g, hidden.norm(g, stack.dialect, "norm"))
    if stack.tells_logits:
        new["logits"] = g.to_float32(logits)
    new["token"] = stack.dialect.keep(g, alive, token, held["token"])
    for name in ("fed", "position"):
        new[name] = stack.dialect.keep(g, alive, g.op("Add", held[name], [1]), held[name])
    return new
