"""The layout of the dialect `ort`: one cache holds the prompt's keys and, in front of them, those of latent steps; the
cache of what is spoken grows.

Place in the pipeline: dialects.py chooses it. On a CPU a node costs more than to copy the prompt's keys, or to look a
row up. So places are looked up in tables of all slots, which are made once before the loop; reports are collected, not
carried; and what follows from the number of steps or from the logits is left for after the loop.

Legend: S tokens of a latent step, C slots for all latent steps, P prompt tokens, N = C + P columns, T most steps, G key
    heads, W head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from lrkit.export.graph.caches import Caches, Latents, PastOf, Places, Read
from lrkit.export.graph.latent_reports import Types
from lrkit.export.graph.layers import NEVER, SEEN, Past, Remember, Seen, Segment
from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.pruning_nodes import BEHIND, Spread
from lrkit.export.graph.replay_nodes import Prompt
from lrkit.export.graph.writer import Rotation


@dataclass(frozen=True)
class Tables:
    """All latent slots. The first lies next to the prompt, the others in front of it: so where they are does not depend
    on the prompt, and what is filled is in one piece."""

    where: Value
    """(C, G, 1, 3)."""
    masks: Value
    """(C, 1, 1, N)."""
    behind: Value | None
    """The same of the layers behind pruning; None: as of the others."""
    rotation: Rotation
    """Row 0 turns nothing; those behind it are for positions counted from `position`."""
    numbers: Value
    """Which of them, for the R rows of a key head (`Decoder.turns`): (C, R) by slot, or (T, S, R) by step where a
    step's tokens share a position."""
    position: Value
    """Of the first latent token, [1]."""


class JoinedCaches(Caches):
    """Copies keys to spare nodes."""

    @property
    def columns(self) -> str:
        """The prompt's, and one for each latent slot."""
        return f"{self.stack.columns}+C"

    def prompt_rotations(self, g: Graph, position: Value, after: Value) -> tuple[Rotation, Rotation | None]:
        """The layers' table has the latents' rotations too."""
        stack, decoder = self.stack, self.stack.decoder
        if not stack.steps:
            return super().prompt_rotations(g, position, after)
        # The fused rotation refuses a table with fewer rows than a token has heads.
        table = decoder.rotation_with_turns(g, position, after, max(stack.capacity, len(decoder.turns)))
        return table, decoder.prompt_rotation(g, position) if stack.routers else None

    def widened(self, g: Graph, own: Value, kind: type) -> Value:
        """The latents' columns are in front."""
        return g.op("Concat", np.zeros(self.stack.capacity, kind), own, axis=0)

    @property
    def room(self) -> str:
        """The prompt's columns too."""
        return self.columns

    @property
    def room_behind(self) -> str:
        """The prompt's columns that are left."""
        return f"{BEHIND}+C"

    def step_spread(self, g: Graph, index: Value, prompt: Prompt) -> Spread:
        """Latent slots are in front in all layers."""
        capacity = self.stack.capacity
        places = g.op("Concat", np.arange(capacity), g.op("Add", index, [capacity]), axis=0)
        return Spread(places, g.op("ConstantOfShape", g.op("Add", prompt.num_tokens, [capacity])))

    @property
    def counter_types(self) -> Types:
        """The token to speak is read off the logits after the loop."""
        return {"logits": (self.stack.dialect.floats, (1, self.stack.dims.vocabulary))}

    @property
    def report_types(self) -> Types:
        """None."""
        return {}

    @property
    def row_types(self) -> Types:
        """All reports."""
        return self.stack.reports.row_types

    def begin(self, g: Graph, read: Read) -> tuple[Carried, Latents]:
        """The prompt's keys behind empty slots."""
        stack, prompt = self.stack, read.prompt
        place = partial(self._place, self._tables(g, read))
        if stack.replay.slots:
            prompt = prompt.pad(g, stack.capacity, stack.dims.row_width)
        empty = next(iter(self.empty(g, stack.capacity).values()))
        kinds = {"key": read.keys, "value": read.values}
        caches = {
            f"{kind}{i}": g.op("Concat", empty, own, axis=2) for kind in kinds for i, own in enumerate(kinds[kind])
        }
        spread = None if read.left is None else self.step_spread(g, read.left.index, prompt)
        return caches, Latents(prompt, lambda layer: Past((), None), place, self._step, spread)

    def _step(self, g: Graph, held: Carried, iteration: Value | None) -> Value:
        assert iteration is not None, "joined caches are written in a loop of the graph"
        return g.op("Unsqueeze", iteration, [0])

    def _tables(self, g: Graph, read: Read) -> Tables:
        stack = self.stack
        steps, tokens, capacity, groups = stack.steps, stack.step_tokens, stack.capacity, stack.dims.num_key_heads
        count = steps * tokens
        by_step = np.arange(steps).repeat(tokens).reshape(steps, tokens)
        ahead = by_step if stack.shares_positions else np.arange(count)
        slots = capacity - 1 - np.arange(count)
        where = np.zeros((count, groups, 1, 3), np.int64)
        where[..., 1], where[..., 2] = np.arange(groups)[:, None], slots[:, None, None]
        seen = np.where(np.arange(capacity) >= slots[:, None], SEEN, NEVER)[:, None, None]

        def masks(length: Value) -> Value:
            prompt = g.op("ConstantOfShape", g.op("Concat", [count, 1, 1], length, axis=0))
            return g.op("Concat", seen, prompt, axis=-1)

        whole = masks(read.num_keys(behind=False))
        behind = None if read.left is None else masks(read.left.num_tokens)
        rows = g.value((ahead[..., None] + 1) * np.array(stack.decoder.turns))
        return Tables(g.value(where), whole, behind, read.rotation, rows, read.state["position"])

    def _place(self, tables: Tables, g: Graph, held: Carried, offsets: Value, iteration: Value | None) -> Places:
        assert iteration is not None, "joined caches are written in a loop of the graph"
        shared = self.stack.shares_positions
        step, slots = g.op("Unsqueeze", iteration, [0]), g.op("Add", held["length"], offsets)
        mask = self.step_mask(g, g.op("Gather", tables.masks, slots, axis=0))
        numbers = g.op("Gather", tables.numbers, iteration if shared else slots, axis=0)
        rotation = Rotation(tables.rotation.cos, tables.rotation.sin, numbers)
        where, routed = g.op("Gather", tables.where, slots, axis=0), None
        if self.stack.routers:
            since = g.op("Add", step, self.turns(offsets)) if shared else slots
            routed = self.routed_rotation(g, g.op("Add", tables.position, since))
        behind = None
        if tables.behind is not None:
            behind = self.step_mask(g, g.op("Gather", tables.behind, slots, axis=0))
        return Places(step, where, mask, rotation, routed, behind)

    def moved(self, g: Graph, held: Carried, decided: Carried, ahead: Value) -> Carried:
        """The loop itself counts the steps."""
        return decided | {"length": g.op("Add", held["length"], ahead)}

    def next_saliency(self, g: Graph, row: Value, prompt: Prompt) -> Value:
        """All of it: no latent's column is ever free."""
        return row

    def report(self, g: Graph, held: Carried, rows: Carried, step: Value) -> tuple[Carried, Carried]:
        """The loop collects it."""
        return {}, rows

    def goes_on(self, g: Graph, held: Carried, new: Carried, wants: Value) -> Value:
        """As the model wants."""
        return wants

    def finish(self, g: Graph, read: Read, state: Carried) -> Carried:
        """The token to speak, the counters, and the reports."""
        token, length = self.stack.spoken(g, state["logits"]), state["length"]
        steps = g.shape_of(state["latent_states"], 0)
        position = g.op("Add", read.state["position"], steps if self.stack.shares_positions else length)
        whole, unused = g.op("Add", read.prompt.num_tokens, length), g.op("Sub", [self.stack.capacity], length)
        counters = {"token": token, "steps": steps, "position": position, "length": whole, "unused": unused}
        if read.left is not None:
            counters["length_behind"] = g.op("Add", read.left.num_tokens, length)
        return counters | self.stack.reports.collected(g, state)

    @property
    def speech_room(self) -> str:
        """As many as were spoken."""
        return "T"

    def empty_speech(self, g: Graph) -> Carried:
        """Of no length."""
        return self.empty(g, 0)

    def context(self, g: Graph, read: Read, before: Carried) -> Callable[[Graph, Carried], PastOf]:
        """The latents' cache without the slots that no step filled."""
        segments, unpruned = list(zip(read.keys, read.values, strict=True)), read.left is None
        counts = [read.num_keys(behind) for behind in (False, True)]
        if self.stack.steps:
            counts = [before["length"], before["length"] if unpruned else before["length_behind"]]
            unused = before["unused"]

            def filled(name: str) -> Value:
                return g.op("Slice", before[name], unused, [np.iinfo(np.int64).max], [2])

            segments = [(filled(f"key{i}"), filled(f"value{i}")) for i in range(len(segments))]

        def past(inner: Graph, held: Carried) -> PastOf:
            spoken = inner.op("Add", held["fed"], [1])
            lengths = [inner.op("Concat", count, spoken, axis=0) for count in (counts[:1] if unpruned else counts)]
            return lambda layer: Past((Segment(*segments[layer]),), lengths[self.stack.is_behind(layer)])

        return past

    def remember_spoken(self, g: Graph, held: Carried, new: Carried, past: PastOf) -> Callable[[int], Remember]:
        """Behind the others: what is copied is as long as the speech, and nothing needs a mask."""

        def of(layer: int) -> Remember:
            def remember(key: Value, value: Value) -> Seen:
                names, before = (f"key{layer}", f"value{layer}"), past(layer)
                keys, values = (
                    g.op("Concat", held[name], fresh, axis=2) for name, fresh in zip(names, (key, value), strict=True)
                )
                new.update(zip(names, (keys, values), strict=True))
                return Seen((*before.segments, Segment(keys, values)), before.lengths)

            return remember

        return of
