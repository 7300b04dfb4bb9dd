"""The layout of the dialect `standard`, and of all graphs that a host drives: a cache for the prompt, one for latent
steps and one for what is spoken, each with room for all that may come.

Place in the pipeline: dialects.py and step_graphs.py choose it. TensorRT's loops carry nothing that changes its shape,
and collect nothing. On a GPU copying the prompt's keys should cost more than nodes do. So places are computed when they
are needed, and reports are written into states that have a row for every step.

Legend: S tokens of a latent step, C slots for all latent steps, P prompt tokens, K replay slots.
"""

from collections.abc import Callable

import numpy as np

from lrkit.export.graph.caches import Caches, Latents, PastOf, Places, Read
from lrkit.export.graph.latent_reports import Types
from lrkit.export.graph.layers import Mask, Past, Remember, Segment
from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.pruning_nodes import Left, Spread
from lrkit.export.graph.replay_nodes import Prompt
from lrkit.export.graph.routing_nodes import places, places_by_token
from lrkit.export.graph.stack import BOOL, INT64


class SeparateCaches(Caches):
    """Copies no key of the prompt in a loop."""

    @property
    def columns(self) -> str:
        """The prompt's, and one for each replay slot."""
        return f"{self.stack.columns}+K"

    def widened(self, g: Graph, own: Value, kind: type) -> Value:
        """Columns for empty slots are behind."""
        return g.op("Concat", own, np.zeros(self.stack.replay.slots, kind), axis=0)

    @property
    def room(self) -> int:
        """All latent slots."""
        return self.stack.capacity

    @property
    def counter_types(self) -> Types:
        """A body that runs once too often finds that it is no longer alive."""
        types: Types = dict.fromkeys(("token", "position", "steps"), (INT64, (1,)))
        return types | {"alive": (BOOL, ())}

    @property
    def report_types(self) -> Types:
        """All reports."""
        return self.stack.reports.types

    @property
    def row_types(self) -> Types:
        """None."""
        return {}

    def begin(self, g: Graph, read: Read) -> tuple[Carried, Latents]:
        """Empty caches and reports."""
        token = self.stack.spoken(g, read.state["logits"])
        latents = self.latents(g, read.prompt, lambda layer: Segment(read.keys[layer], read.values[layer]), read.left)
        reports, caches = self.stack.reports.empty(g), self.empty(g, self.stack.capacity)
        return {"token": token} | reports | caches, latents

    def latents(
        self, g: Graph, prompt: Prompt, segment: Callable[[int], Segment], left: Left | None = None
    ) -> Latents:  # fmt: skip
        """What latent steps read: `segment` has the prompt's keys of a layer, all or those `left`."""
        counts = [prompt.num_tokens] if left is None else [prompt.num_tokens, left.num_tokens]
        lengths = [g.op("Concat", count, [self.stack.capacity], axis=0) for count in counts]

        def past(layer: int) -> Past:
            return Past((segment(layer),), lengths[self.stack.is_behind(layer)])

        spread = None if left is None else self.step_spread(g, left.index, prompt)
        return Latents(prompt, past, self._place, lambda _, held, __: held["steps"], spread)

    def step_spread(self, g: Graph, index: Value, prompt: Prompt) -> Spread:
        """Latent slots are behind the prompt's keys."""
        slots = g.op("Add", prompt.num_tokens, np.arange(self.stack.capacity))
        whole = g.op("Add", prompt.num_tokens, [self.stack.capacity])
        return Spread(g.op("Concat", index, slots, axis=0), g.op("ConstantOfShape", whole))

    def _place(self, g: Graph, held: Carried, offsets: Value, iteration: Value | None) -> Places:
        stack = self.stack
        tokens, decoder = stack.step_tokens, stack.decoder
        # Once halted there may be no room left: then the writes go to the last chunk's place, which nobody reads again.
        start = g.op("Min", held["length"], [stack.capacity - tokens])
        step, slots = g.op("Min", held["steps"], [stack.steps - 1]), g.op("Add", start, offsets)
        position = g.op("Add", held["position"], self.turns(offsets))
        columns = g.value(np.arange(stack.capacity)[None])
        slots = g.op("Unsqueeze", slots, [1, 2, 3])
        rows = decoder.row_mask(g, g.op("LessOrEqual", columns, slots)).rows
        where = places_by_token(g, slots, stack.dims.num_key_heads)
        mask = self.step_mask(g, rows)
        rotation = decoder.head_rotation(g, position, tokens)
        return Places(step, where, mask, rotation, self.routed_rotation(g, position))

    def moved(self, g: Graph, held: Carried, decided: Carried, ahead: Value) -> Carried:
        """All counters, and the token that would be spoken."""
        decided = dict(decided)
        token, one = self.stack.spoken(g, decided.pop("logits")), g.value([1])
        by = {"length": ahead, "steps": one, "position": one if self.stack.shares_positions else ahead}
        return decided | {"token": token} | {name: g.op("Add", held[name], further) for name, further in by.items()}

    def next_saliency(self, g: Graph, row: Value, prompt: Prompt) -> Value:
        """The prompt's, and K that are never free."""
        return g.op("Slice", row, [0], g.op("Add", prompt.num_tokens, [self.stack.replay.slots]), [0])

    def report(self, g: Graph, held: Carried, rows: Carried, step: Value) -> tuple[Carried, Carried]:
        """Into its row."""
        return self.stack.reports.written(g, held, rows, step), {}

    def goes_on(self, g: Graph, held: Carried, new: Carried, wants: Value) -> Value:
        """As the model wants, unless it had halted before."""
        new["alive"] = self.stack.dialect.still(g, held["alive"], wants)
        return new["alive"]

    def finish(self, g: Graph, read: Read, state: Carried) -> Carried:
        """Nothing is left."""
        return {}

    @property
    def speech_room(self) -> int:
        """All that may be spoken."""
        return self.stack.limits.max_new_tokens

    def empty_speech(self, g: Graph) -> Carried:
        """Of full length."""
        return self.empty(g, self.speech_room)

    def context(self, g: Graph, read: Read, before: Carried) -> Callable[[Graph, Carried], PastOf]:
        """All latent slots behind the prompt; those that no step filled are masked."""
        segments = list(zip(read.keys, read.values, strict=True))
        counts = [read.num_keys(behind) for behind in ((False,) if read.left is None else (False, True))]
        masks: list[Mask | None] = [None, None]
        if self.stack.steps:
            masks = [self._context_mask(g, count, before["length"]) for count in counts]
            counts = [g.op("Add", count, [self.stack.capacity]) for count in counts]
            own = [(before[f"key{i}"], before[f"value{i}"]) for i in range(len(segments))]
            pairs = zip(segments, own, strict=True)
            segments = [(g.op("Concat", a, c, axis=2), g.op("Concat", b, d, axis=2)) for (a, b), (c, d) in pairs]
        lengths = [g.op("Concat", count, [self.speech_room], axis=0) for count in counts]

        def past(layer: int) -> Past:
            behind = self.stack.is_behind(layer)
            return Past((Segment(*segments[layer], masks[behind]),), lengths[behind])

        return lambda inner, held: past

    def _context_mask(self, g: Graph, num_tokens: Value, length: Value) -> Mask:
        filled = g.op("Unsqueeze", g.op("Less", np.arange(self.stack.capacity), length), [0])
        always = g.op("Expand", np.ones((1, 1), bool), g.op("Concat", [1], num_tokens, axis=0))
        return self.stack.decoder.row_mask(g, g.op("Concat", always, filled, axis=1))

    def remember_spoken(self, g: Graph, held: Carried, new: Carried, past: PastOf) -> Callable[[int], Remember]:
        """Into the token's slot."""
        columns = self.speech_room
        slot = g.op("Min", held["fed"], [columns - 1])
        visible = g.op("LessOrEqual", np.arange(columns)[None], g.op("Unsqueeze", slot, [1]))
        mask, where = self.stack.decoder.row_mask(g, visible), places(g, slot, self.stack.dims.num_key_heads)
        return lambda layer: self.remember(g, layer, held, new, where, past(layer), mask)
