"""Where the tokens of a latent step go: their slots in the cache, what they see of it, and how they turn.

Place in the pipeline: chunks.py asks in every latent step. On a GPU, and where a host drives the steps, places are
computed when they are needed (`computed`). On a CPU a node costs more than looking up a row. So where caches are joined
with the prompt's, `Tables` of all slots are made once, before the loop.

Legend: S tokens of a latent step, C slots for all latent steps, N columns of the cache, T most steps, G key heads, Q
    query heads per key head, W head width.
"""

from dataclasses import dataclass

import numpy as np

from lrkit.export.graph.decoder import NEVER, SEEN, Decoder, Mask
from lrkit.export.graph.dialect import Rotation
from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.routing import places_by_token


@dataclass(frozen=True)
class Places:
    """Of one latent step, token by token."""

    where: Value
    """Indices (S, G, 1, 3) of the cache's rows to write."""
    mask: Mask
    rotation: Rotation


def computed(g: Graph, decoder: Decoder, columns: Value, slots: Value, position: Value, tokens: int) -> Places:
    """Of `tokens` tokens in `slots` (S,) of a cache with `columns` (1, N), turning with `position` (S,)."""
    slots = g.op("Unsqueeze", slots, [1, 2, 3])
    rows = decoder.row_mask(g, g.op("LessOrEqual", columns, slots)).rows
    where = places_by_token(g, slots, decoder.dimensions.num_key_heads)
    mask = _mask(g, rows, tokens, decoder.together(tokens))
    return Places(where, mask, decoder.head_rotation(g, position, tokens))


@dataclass(frozen=True)
class Tables:
    """All slots of caches that hold the prompt's keys too. Latents lie in front of the prompt, the first next to it: so
    where they go does not depend on the prompt, and what is filled is in one piece."""

    where: Value
    """(C, G, 1, 3)."""
    masks: Value
    """(C, 1, 1, N)."""
    turns: Rotation
    """Row 0 turns nothing; those behind it are for positions counted from `position`."""
    numbers: Value
    """Which of them: (C, Q + 2) by slot, or (T, S, Q + 2) by step where a step's tokens share a position."""
    position: Value
    """Of the first latent token, [1]."""
    tokens: int
    """S."""
    shared: bool
    """Whether a step's tokens share a position."""
    together: bool
    """Whether attention has them together (`Decoder.together`)."""

    @classmethod
    def make(
        cls, g: Graph, decoder: Decoder, turns: Rotation, length: Value, position: Value, steps: int, tokens: int,
        shared: bool, capacity: int,
    ) -> "Tables":  # fmt: skip
        """In front of a prompt of `length` [1] tokens, for latents from `position` [1] on, in a cache with room for
        `capacity` of them or more."""
        count, groups = steps * tokens, decoder.dimensions.num_key_heads
        ahead = np.arange(steps).repeat(tokens).reshape(steps, tokens) if shared else np.arange(count)
        slots = capacity - 1 - np.arange(count)
        where = np.zeros((count, groups, 1, 3), np.int64)
        where[..., 1], where[..., 2] = np.arange(groups)[:, None], slots[:, None, None]
        seen = np.where(np.arange(capacity) >= slots[:, None], SEEN, NEVER)[:, None, None]
        prompt = g.op("ConstantOfShape", g.op("Concat", [count, 1, 1], length, axis=0))
        masks = g.op("Concat", seen, prompt, axis=-1)
        heads = np.ones(decoder.share + 2, np.int64)
        heads[-1] = 0  # a value does not turn
        rows = g.value((ahead[..., None] + 1) * heads)
        return cls(g.value(where), masks, turns, rows, position, tokens, shared, decoder.together(tokens))

    def of(self, g: Graph, slots: Value, step: Value) -> Places:
        """Of tokens in `slots` (S,), counted from the prompt; `step` () counts from 0."""
        mask = _mask(g, g.op("Gather", self.masks, slots, axis=0), self.tokens, self.together)
        numbers = g.op("Gather", self.numbers, step if self.shared else slots, axis=0)
        rotation = Rotation(self.turns.cos, self.turns.sin, numbers)
        return Places(g.op("Gather", self.where, slots, axis=0), mask, rotation)


def _mask(g: Graph, rows: Value, tokens: int, together: bool) -> Mask:
    """From rows (S, 1, 1, N)."""
    rows = g.op("Reshape", rows, [tokens, -1]) if together else rows
    return Mask(rows, rows if tokens == 1 else g.op("Gather", rows, [-1], axis=0))
