"""Where the tokens of a latent step go: their slots in the cache, what they see of it, and how they turn.

Place in the pipeline: chunks.py asks in every latent step. On a GPU, and where a host drives the steps, places are
computed when they are needed (`computed`). On a CPU a node costs more than to look a row up, so there `Tables` of all
slots are made once, before the loop.

Legend: S tokens of a latent step, C slots for all latent steps, N columns of the cache, T most steps, G key heads, Q
    query heads per key head, W head width.
"""

from dataclasses import dataclass

import numpy as np

from lrkit.export.decoder import Decoder, Mask
from lrkit.export.dialect import Rotation
from lrkit.export.graph import Graph, Value
from lrkit.export.routing import places_by_token


@dataclass(frozen=True)
class Places:
    """Of one latent step, token by token."""

    where: Value
    """Indices (S, G, 1, 3) of the cache's rows to write."""
    mask: Mask
    rotation: Rotation


def computed(g: Graph, decoder: Decoder, columns: Value, slots: Value, position: Value, tokens: int) -> Places:
    """Of `tokens` tokens in `slots` (S,) of a cache with `columns` (1, N), turning with `position` (S,)."""
    where, rows = _rows(g, decoder, columns, slots)
    return Places(where, _mask(g, rows, tokens), decoder.head_rotation(g, position, tokens))


@dataclass(frozen=True)
class Tables:
    """All slots behind the prompt."""

    where: Value
    """(C, G, 1, 3)."""
    masks: Value
    """(C, 1, 1, N)."""
    turns: Rotation
    """Row 0 turns nothing; the others are for positions counted from `position`."""
    numbers: Value
    """Which of them: (C, Q + 2) by slot, or (T, S, Q + 2) by step where a step's tokens share a position."""
    position: Value
    """Of the first latent token, [1]."""
    tokens: int
    """S."""
    shared: bool
    """Whether a step's tokens share a position."""

    @classmethod
    def make(
        cls, g: Graph, decoder: Decoder, length: Value, position: Value, capacity: int, tokens: int, shared: bool
    ) -> "Tables":
        """Behind a prompt of `length` [1] tokens, for latents from `position` [1] on."""
        slots = g.op("Add", length, np.arange(capacity))
        columns = g.op("Range", 0, g.op("Squeeze", g.op("Add", length, [capacity]), [0]), 1)
        where, masks = _rows(g, decoder, columns, slots)
        heads, count = decoder.share + 2, capacity // tokens if shared else capacity
        # The rotation refuses a table with fewer rows than a token has heads.
        ahead = g.op("Add", position, np.arange(max(count, heads)))
        turns = decoder.dialect.rotation(g, decoder.angles(g, g.op("Concat", [0], ahead, axis=0)))
        numbers = np.repeat(np.arange(1, count + 1)[:, None], heads, axis=1)
        numbers[:, -1] = 0  # a value does not turn
        if shared:
            numbers = np.repeat(numbers[:, None], tokens, axis=1)
        return cls(where, masks, turns, g.value(numbers), position, tokens, shared)

    def of(self, g: Graph, slots: Value, step: Value) -> Places:
        """Of tokens in `slots` (S,) behind the prompt; `step` () counts from 0."""
        mask = _mask(g, g.op("Gather", self.masks, slots, axis=0), self.tokens)
        numbers = g.op("Gather", self.numbers, step if self.shared else slots, axis=0)
        rotation = Rotation(self.turns.cos, self.turns.sin, numbers)
        return Places(g.op("Gather", self.where, slots, axis=0), mask, rotation)


def _rows(g: Graph, decoder: Decoder, columns: Value, slots: Value) -> tuple[Value, Value]:
    """Of `slots` (S,): where to write, (S, G, 1, 3), and what is added to scores, (S, 1, 1, N)."""
    slots = g.op("Unsqueeze", slots, [1, 2, 3])
    seen = decoder.row_mask(g, g.op("LessOrEqual", columns, slots)).rows
    return places_by_token(g, slots, decoder.dimensions.num_key_heads), seen


def _mask(g: Graph, rows: Value, tokens: int) -> Mask:
    return Mask(rows, rows if tokens == 1 else g.op("Gather", rows, [-1], axis=0))
