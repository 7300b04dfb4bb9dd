"""The three chunks that every form of a program is made of: read the prompt, take one latent step, speak one token.

Place in the pipeline: program.py puts them into loops, step_graphs.py into graphs of their own that a host drives.

Caches have a fixed capacity and are written in place by position. The state only moves while it is alive. So an engine
that runs one iteration too many changes nothing: what it writes to a cache is not visible yet, and is overwritten.

Legend: P prompt tokens, S tokens of a latent step (K replayed and the latent), N cache slots, D width, H heads, G key
    heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lrkit.contract.bundle.io_spec import ProgramShape
from lrkit.contract.bundle.manifest import Limits
from lrkit.export.graph.choices import choice
from lrkit.export.graph.decoder import Decoder, Hidden, Mask, Past, Remember, Seen, Segment
from lrkit.export.graph.dialect import Dialect, Rotation
from lrkit.export.graph.latent_input import as_input
from lrkit.export.graph.latent_places import Places, Tables, computed
from lrkit.export.graph.latent_reports import LatentReports, Types
from lrkit.export.graph.nodes import Carried, Graph, Operand, Value
from lrkit.export.graph.replay import Prompt, Replay, Replayed
from lrkit.export.graph.routing import Refined, Router, places
from lrkit.export.weights.source import Source
from lrkit.families.protocols import Geometry

FLOAT32, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


@dataclass(frozen=True)
class Read:
    """What the prompt leaves behind."""

    state: Carried
    prompt: Prompt
    keys: list[Value]
    """Per layer (1, G, P, W), as the values."""
    values: list[Value]
    turns: Rotation


class Chunks:
    """Writes chunks of one reasoner."""

    def __init__(self, source: Source, dialect: Dialect, limits: Limits, geometry: Geometry) -> None:
        """`geometry` is the family's: how the pictures of its prompts are cut."""
        self.source, self.dialect, self.limits, self.geometry = source, dialect, limits, geometry
        self.dims, self.settings = source.dimensions, source.settings
        self.decoder = Decoder(self.dims, dialect)
        self.steps = limits.max_latent_steps
        # More slots than a prompt can have visual tokens would always stay empty.
        most_visual = max(1, limits.max_patches // geometry.patches_per_token)
        slots = min(self.settings.replay.num_tokens, most_visual) if self.steps else 0
        self.replay = Replay(self.settings.replay, slots, dialect)
        self.chunk = self.replay.num_tokens + 1
        # TopK must find K columns whatever the prompt, also where the K tokens are mixed into one.
        self.capacity = max(self.steps * self.chunk, slots)
        layers = self.settings.routing.chosen_layers(self.dims.num_layers)
        self.routers = {i: Router(self.decoder, self.settings.routing, i, self.chunk, self.steps) for i in layers}
        self.reports = LatentReports(self.steps, self.dims.width, self.replay.slots, len(self.routers), self.chunk)

    @property
    def shape(self) -> ProgramShape:
        """What fixes the inputs and outputs."""
        return ProgramShape(
            prompt_inputs=self.geometry.program_inputs, vocabulary=self.dims.vocabulary, width=self.dims.width,
            max_latent_steps=self.steps, max_new_tokens=self.limits.max_new_tokens, replay_slots=self.replay.slots,
            routed_layers=tuple(self.routers), latent_chunk=self.chunk,
        )  # fmt: skip

    def prompt(self, g: Graph, given: Carried, visual: Value, joined: bool = False) -> Read:
        """Prefill: caches, the decision, and everything that latent steps start from; `joined` as in `think_types`."""
        ids, position = given["input_ids"], given["position_ids"]
        is_visual = g.op("Equal", ids, self.source.image_id)
        count = g.op("Sub", g.op("CumSum", g.cast(is_visual, INT64), 0), [1])
        rows = g.op("Gather", visual, g.op("Max", count, [0]), axis=0)
        embeds = g.op("Where", g.op("Unsqueeze", is_visual, [1]), rows, self.dialect.embed(g, ids))
        prompt = Prompt(embeds, count, g.shape_of(ids, 0))
        number = g.op("Range", 0, g.op("Squeeze", prompt.num_tokens, [0]), 1)
        visible = g.op("LessOrEqual", g.op("Unsqueeze", number, [0]), g.op("Unsqueeze", number, [1]))
        mask = self.decoder.mask(g, visible)
        largest = g.op("ReduceMax", g.op("Reshape", position, [-1]), [0], keepdims=1)
        after = g.op("Add", largest, [1])
        turns = self._prompt_turns(g, position, after, joined)
        keys: list[Value] = []
        values: list[Value] = []

        def remember(key: Value, value: Value) -> Seen:
            keys.append(key)
            values.append(value)
            return Seen((Segment(keys[-1], values[-1], mask),))

        caches = {i: router.empty(g) for i, router in self.routers.items()}
        watch = self.replay.slots > 0
        hidden, caches, passes = self._chunk(g, embeds, None, turns, lambda _: remember, caches, None, watch)
        state: Carried = {"hidden": hidden} | self._decide(g, hidden)
        state["prefill_logits"] = g.to_float32(g.op("Squeeze", state["logits"], [0]))
        state["position"] = after
        if watch:
            nothing = np.zeros(self.capacity if joined else self.replay.slots, np.float32)
            for name, own in (("saliency", self.decoder.take_saliency(g)), ("free", is_visual)):
                none = nothing if name == "saliency" else nothing.astype(bool)
                state[name] = g.op("Concat", *((none, own) if joined else (own, none)), axis=0)
        for i, cache in caches.items():
            state |= cache.state(i)
        if self.routers:
            state["routed_prompt"], row = self.reports.by_layer(g, passes)
            rest = np.zeros((self.steps, len(self.routers)), np.int64)
            state["routed_depths"] = g.op("Concat", row, rest, axis=0)
        return Read(state, prompt, keys, values, turns[0])

    def _prompt_turns(self, g: Graph, position: Value, after: Value, joined: bool) -> tuple[Rotation, Rotation | None]:
        """The prompt's rotation, of joined caches with the latents' in its table; and as the routers read it."""
        if not joined:
            rotation = self.decoder.prompt_rotation(g, position)
            return rotation, rotation
        # The fused rotation refuses a table with fewer rows than a token has heads.
        table = self.decoder.rotation_with_turns(g, position, after, max(self.capacity, self.decoder.share + 2))
        return table, self.decoder.prompt_rotation(g, position) if self.routers else None

    def _chunk(
        self,
        g: Graph,
        embeds: Value,
        valid: Value | None,
        turns: tuple[Rotation, Rotation | None],
        remember: Callable[[int], Remember],
        caches: dict[int, Refined],
        step: Value | None,
        watch: bool,
    ) -> tuple[Value, dict[int, Refined], list[Value]]:
        """All layers over the prompt or a latent step, with routing: (last token's normed state (1, D), caches,
        passes). `turns`: the rotation of the layers, and that of what is routed."""
        hidden, caches, passes = Hidden(embeds), dict(caches), []
        last_layer = self.dims.num_layers - 1
        by_token = step is not None
        single = by_token and self.chunk == 1
        together = by_token and self.decoder.together(self.chunk)
        # Only the last token of the last layer is ever read, unless that layer routes.
        shortened = last_layer not in self.routers and not single
        for i in range(self.dims.num_layers):
            with g.scope(f"layer{i}"):
                only_last = shortened and i == last_layer
                hidden = self.decoder.layer(g, i, hidden, turns[0], remember(i), by_token, only_last, watch, together)
                if i in self.routers:
                    assert turns[1] is not None
                    routed = self.routers[i].route(g, hidden.close(g), valid, turns[1], caches[i], step)
                    hidden, caches[i] = Hidden(routed.hidden), routed.cache
                    passes.append(routed.passes)
        if last_layer in self.routers and not single:
            hidden = Hidden(g.op("Gather", hidden.close(g), [-1], axis=0))
        return hidden.norm(g, self.dialect, "norm"), caches, passes

    def _decide(self, g: Graph, hidden: Value) -> Carried:
        """Reads the head once: does the model want to think on? `spoken` tells what it would say otherwise."""
        role = self._head_role
        logits = self.dialect.linear(g, hidden, role, part="head" if role == "head" else role)
        best = g.op("ArgMax", logits, axis=-1, keepdims=0)
        return {"logits": logits, "wants": g.op("Equal", best, [self.source.latent_id])}

    def spoken(self, g: Graph, logits: Value) -> Value:
        """The token [1] that is said where thinking ends."""
        return g.op("ArgMax", g.op("Add", logits, self._never_latent), axis=-1, keepdims=0)

    @property
    def _head_role(self) -> str:
        """Tied float weights are stored once, under the embedding's name."""
        floats = self.dialect.target.precision != "int4"
        return "embedding" if self.source.tied and floats else "head"

    @property
    def _never_latent(self) -> np.ndarray:
        mask = np.zeros(self.dims.vocabulary, self.dialect.floats.numpy())
        mask[self.source.latent_id] = -3e4 if self.dialect.target.computes_fp16 else -1e30
        return mask

    def think_types(self, joined: bool = False) -> Types:
        """States of the latent loop; some are absent where nothing is replayed or routed. `joined`: caches hold the
        prompt's keys too, behind; reports are collected, not carried; what follows from the number of steps and of
        latent keys, `length`, and from the logits is left for after the loop."""
        floats, layers = self.dialect.floats, len(self.routers)
        types: Types = {"hidden": (floats, (1, self.dims.width)), "wants": (BOOL, (1,)), "length": (INT64, (1,))}
        if joined:
            types["logits"] = (floats, (1, self.dims.vocabulary))
        else:
            types |= dict.fromkeys(("token", "position", "steps"), (INT64, (1,))) | {"alive": (BOOL, ())}
        if self.replay.slots:
            columns = "P+C" if joined else "P+K"
            types |= {"saliency": (FLOAT32, (columns,)), "free": (BOOL, (columns,))}
        if layers:
            types["routed_depths"] = (INT64, (self.steps + 1, layers))
        types |= {} if joined else self.reports.types
        types |= self.cache_types("P+C" if joined else self.capacity)
        for router in self.routers.values():
            types |= router.state_types()
        return types

    def cache_types(self, capacity: int | str) -> Types:
        """Keys and values that a loop writes."""
        shape = (1, self.dims.num_key_heads, capacity, self.dims.head_width)
        names = [f"{kind}{i}" for i in range(self.dims.num_layers) for kind in ("key", "value")]
        return dict.fromkeys(names, (self.dialect.floats, shape))

    def empty_caches(self, g: Graph, capacity: int) -> Carried:
        """Caches without keys."""
        shape = [1, self.dims.num_key_heads, capacity, self.dims.head_width]
        zeros = g.to_floats(g.op("ConstantOfShape", shape))
        return dict.fromkeys(self.cache_types(capacity), zeros)

    def joined_caches(self, g: Graph, read: Read) -> Carried:
        """Caches with room for all latent steps in front of the prompt's keys."""
        empty = next(iter(self.empty_caches(g, self.capacity).values()))
        kinds = {"key": read.keys, "value": read.values}
        return {f"{kind}{i}": g.op("Concat", empty, own, axis=2) for kind in kinds for i, own in enumerate(kinds[kind])}

    def tables(self, g: Graph, read: Read) -> Tables:
        """The places of all latent slots of joined caches."""
        length, position = read.prompt.num_tokens, read.state["position"]
        shared = self._shared_positions
        return Tables.make(g, self.decoder, read.turns, length, position, self.steps, self.chunk, shared, self.capacity)

    def think(
        self, g: Graph, held: Carried, prompt: Prompt, past: Callable[[int], Past],
        tables: Tables | None = None, iteration: Value | None = None,
    ) -> Carried:  # fmt: skip
        """One latent step: the new state. Without `alive` in the state it always moves. `tables` where caches are
        joined; then `iteration` () numbers the steps."""
        new, latent, joined = dict(held), as_input(g, self.source, self.dialect, held["hidden"]), tables is not None
        replayed = self.replay.select(g, prompt, held["saliency"], held["free"]) if self.replay.slots else None
        embeds, valid, offsets, ahead = self._latent_chunk(g, latent, replayed)
        step, at, turn = self._places(g, held, offsets, tables, iteration)

        def remember(layer: int) -> Remember:
            return self._remember(g, layer, held, new, at.where, past(layer), at.mask)

        caches, watch = {i: Refined.of(i, held) for i in self.routers}, self.replay.slots > 0
        turns = (at.rotation, turn)
        hidden, caches, passes = self._chunk(g, embeds, valid, turns, remember, caches, step, watch)
        moved = self._moved(g, held, hidden, ahead, joined)
        by_layer = None
        if replayed is not None:
            moved["free"], moved["saliency"] = replayed.free, self._next_saliency(g, prompt, joined)
        if passes:
            by_layer, row = self.reports.by_layer(g, passes)
            behind = g.op("Add", g.op("Unsqueeze", step, [1]), [1])
            moved["routed_depths"] = g.op("ScatterND", held["routed_depths"], behind, row)
        rows = self.reports.rows(g, hidden, replayed, by_layer)
        moved |= {} if joined else self.reports.written(g, held, rows, step)
        for name, value in moved.items():
            new[name] = self.dialect.keep(g, held.get("alive"), value, held[name], name in ("free", "wants"))
        for i, cache in caches.items():
            new |= cache.state(i)
        return new | rows if joined else new

    def _places(
        self, g: Graph, held: Carried, offsets: Value, tables: Tables | None, iteration: Value | None
    ) -> tuple[Value, Places, Rotation | None]:
        """(steps before this one, [1]; places of its tokens; their rotation as the routers read it)."""
        turns: Operand = np.zeros(self.chunk, np.int64) if self._shared_positions else offsets
        if tables is not None:
            assert iteration is not None
            step, slots = g.op("Unsqueeze", iteration, [0]), g.op("Add", held["length"], offsets)
            at = tables.of(g, slots, iteration)
            if not self.routers:
                return step, at, None
            since = g.op("Add", step, turns) if self._shared_positions else slots
            position = g.op("Add", tables.position, since)
        else:
            # Once halted there may be no room left: then the writes go to the last chunk's place, which nobody reads
            # again.
            start = g.op("Min", held["length"], [self.capacity - self.chunk])
            step, slots = g.op("Min", held["steps"], [self.steps - 1]), g.op("Add", start, offsets)
            position = g.op("Add", held["position"], turns)
            columns = g.value(np.arange(self.capacity)[None])
            at = computed(g, self.decoder, columns, slots, position, self.chunk)
        turn = self.dialect.rotation(g, self.decoder.angles(g, position)) if self.routers else None
        return step, at, turn

    def _moved(self, g: Graph, held: Carried, hidden: Value, ahead: Value, joined: bool) -> Carried:
        """What every latent step moves on: the hidden state, what it decides, and the counters."""
        moved: Carried = {"hidden": hidden} | self._decide(g, hidden)
        further = [("length", ahead)]
        if not joined:
            moved["token"] = self.spoken(g, moved.pop("logits"))
            further += [("steps", g.value([1])), ("position", g.value([1]) if self._shared_positions else ahead)]
        return moved | {name: g.op("Add", held[name], by) for name, by in further}

    def thought(self, g: Graph, read: Read, state: Carried) -> Carried:
        """After a loop over joined caches: the rest of the state that other loops carry."""
        length, steps = state["length"], g.shape_of(state["latent_states"], 0)
        position = g.op("Add", read.state["position"], steps if self._shared_positions else length)
        whole, unused = g.op("Add", read.prompt.num_tokens, length), g.op("Sub", [self.capacity], length)
        return {"steps": steps, "position": position, "length": whole, "unused": unused}

    def _next_saliency(self, g: Graph, prompt: Prompt, joined: bool) -> Value:
        """Of the columns that the next step selects from: all of joined caches, else the prompt's and K more."""
        row = self.decoder.take_saliency(g)
        return row if joined else g.op("Slice", row, [0], g.op("Add", prompt.num_tokens, [self.replay.slots]), [0])

    @property
    def _shared_positions(self) -> bool:
        return choice(SHARED, self.settings.replay.positions, "replay.positions")

    def _latent_chunk(
        self, g: Graph, latent: Value, replayed: Replayed | None
    ) -> tuple[Value, Value | None, Value, Value]:
        """(embeddings (S, D), which are real (S,), place of each after the last key (S,), number of real ones [1]).

        Real tokens take the places 0, 1, ...; the latent follows the last of them, unread slots come behind it."""
        if replayed is None:
            return latent, None, g.value([0]), g.value([1])
        numbers = np.arange(self.replay.num_tokens, dtype=np.int64)
        real = g.cast(replayed.valid, INT64)
        behind = g.op("Sub", numbers + 1, real)
        count = real if len(numbers) == 1 else g.op("ReduceSum", real, [0], keepdims=1)
        offsets = g.op("Concat", behind, count, axis=0)
        valid = g.op("Concat", replayed.valid, np.ones(1, bool), axis=0) if self.routers else None
        return g.op("Concat", replayed.tokens, latent, axis=0), valid, offsets, g.op("Add", count, [1])

    def _remember(
        self, g: Graph, layer: int, held: Carried, new: Carried, where: Value, past: Past, mask: Mask
    ) -> Remember:
        """Writes new keys into the loop's cache; earlier ones are read where they are."""

        def remember(key: Value, value: Value) -> Seen:
            for name, fresh in ((f"key{layer}", key), (f"value{layer}", value)):
                new[name] = g.op("ScatterND", held[name], where, fresh)
            own = Segment(new[f"key{layer}"], new[f"value{layer}"], mask)
            return Seen((*past.segments, own), past.lengths)

        return remember

    def speak(self, g: Graph, held: Carried, past: Callable[[int], Past], growing: bool = False) -> Carried:
        """Feeds the token of the state and reads the next: the new state. `growing` as in `speak_types`."""
        new = dict(held)
        rotation = self.decoder.head_rotation(g, held["position"])
        remember = self._appended(g, held, new, past) if growing else self._slotted(g, held, new, past)
        hidden = Hidden(self.dialect.embed(g, held["token"]))
        for i in range(self.dims.num_layers):
            with g.scope(f"layer{i}"):
                hidden = self.decoder.layer(g, i, hidden, rotation, remember(i), by_token=True)
        role = self._head_role
        normed = hidden.norm(g, self.dialect, "norm")
        bias = g.value(self._never_latent)
        logits = self.dialect.linear(g, normed, role, bias, part="head" if role == "head" else role)
        token = g.op("ArgMax", logits, axis=-1, keepdims=0)
        new["token"] = self.dialect.keep(g, held.get("alive"), token, held["token"])
        for name in ("fed", "position"):
            new[name] = self.dialect.keep(g, held.get("alive"), g.op("Add", held[name], [1]), held[name])
        return new

    def _slotted(self, g: Graph, held: Carried, new: Carried, past: Callable[[int], Past]) -> Callable[[int], Remember]:
        """The spoken token's keys go into their slot of caches that have room for all."""
        capacity = self.limits.max_new_tokens
        slot = g.op("Min", held["fed"], [capacity - 1])
        mask = self.decoder.row_mask(g, g.op("LessOrEqual", np.arange(capacity)[None], g.op("Unsqueeze", slot, [1])))
        where = places(g, slot, self.dims.num_key_heads)
        return lambda layer: self._remember(g, layer, held, new, where, past(layer), mask)

    def _appended(
        self, g: Graph, held: Carried, new: Carried, past: Callable[[int], Past]
    ) -> Callable[[int], Remember]:
        """They go behind the others: what is copied is as long as the speech, and nothing needs a mask."""

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

    def speak_types(self, growing: bool = False) -> Types:
        """States of the speech loop. `growing` caches hold what was spoken so far; others have max_new_tokens slots."""
        counters = dict.fromkeys(("token", "position", "fed"), (INT64, (1,)))
        return counters | self.cache_types("T" if growing else self.limits.max_new_tokens)


SHARED = {"consecutive": False, "shared": True}
"""`ReplaySettings.positions` -> whether a step's tokens share the latent's position."""
