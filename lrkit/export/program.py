"""The whole reasoner as one graph: prompt, latent loop, speech loop (method sections 1 to 5).

    ids, patches --> vision tower --> prompt --> Loop: think --> Loop: speak --> token ids, steps, replayed, depths

Place in the pipeline: bundle.py calls `build_program` and saves the model; check.py proves it equal to torch.

Caches have a fixed capacity and are written in place by position. The state of a loop only moves while it is alive, so that an
engine that runs one iteration too many changes nothing: what it writes to a cache is not yet visible, and is overwritten.

Legend: P prompt tokens, S tokens of a latent step (K replayed and the latent), N cache slots, D width, H heads, G key heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lrkit.export.decoder import Decoder, Hidden, Mask, Remember, Seen, Segment
from lrkit.export.dialect import Dialect, Rotation
from lrkit.export.graph import Carried, Graph, State, Value
from lrkit.export.replay import Prompt, Replay, Replayed
from lrkit.export.routing import Refined, Router, places
from lrkit.export.source import Source
from lrkit.runtime.io_spec import EMPTY, HALTING, IoSpec, ProgramShape, program_spec
from lrkit.runtime.manifest import Limits

FLOAT32, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
DTYPES = {"int64": INT64, "float32": FLOAT32, "bool": BOOL}

Tower = Callable[[Graph, dict[str, Value]], Value]
"""(graph, inputs) -> visual tokens (V, D): vision.py."""


@dataclass(frozen=True)
class Program:
    """A built program."""

    model: ir.Model
    spec: IoSpec
    routed_layers: tuple[int, ...]
    part_bytes: dict[str, int]
    errors: dict[str, float]
    """Relative error of each quantized matrix."""


@dataclass(frozen=True)
class Past:
    """Keys of one layer that a loop reads but does not write."""

    segment: Segment
    lengths: Value
    """Keys in it, and capacity of the loop's own cache."""


def build_program(source: Source, dialect: Dialect, limits: Limits, eos_id: int, tower: Tower) -> Program:
    """The form `program` for one checkpoint."""
    return _Builder(source, dialect, limits, eos_id).build(tower)


class _Builder:
    def __init__(self, source: Source, dialect: Dialect, limits: Limits, eos_id: int) -> None:
        self.source, self.dialect, self.limits, self.eos_id = source, dialect, limits, eos_id
        self.dims, self.settings = source.dimensions, source.settings
        self.decoder = Decoder(self.dims, dialect)
        self.steps = limits.max_latent_steps
        # More slots than a prompt can have visual tokens would stay empty for ever.
        most_visual = max(1, limits.max_patches // source.merge_size**2)
        slots = min(self.settings.replay.num_tokens, most_visual) if self.steps else 0
        self.replay = Replay(self.settings.replay, slots, dialect)
        self.chunk = self.replay.num_tokens + 1
        self.capacity = self.steps * self.chunk
        layers = self.settings.routing.chosen_layers(self.dims.num_layers)
        self.routers = {i: Router(self.decoder, self.settings.routing, i, self.chunk, self.steps) for i in layers}
        self.spec = program_spec(
            ProgramShape(
                patch_values=source.patch_values, vocabulary=self.dims.vocabulary, width=self.dims.width,
                max_latent_steps=self.steps, max_new_tokens=limits.max_new_tokens, replay_slots=slots,
                routed_layers=tuple(self.routers),
            )
        )  # fmt: skip
        self.g = Graph(dialect.floats)

    def build(self, tower: Tower) -> Program:
        g = self.g
        given = {spec.name: g.input(spec.name, DTYPES[spec.dtype], spec.shape) for spec in self.spec.inputs}
        with g.scope("vision"):
            visual = tower(g, given)
        with g.scope("prompt"):
            state = self._prompt(given, visual)
        with g.scope("think"):
            state |= self._think(given, state)
        with g.scope("speak"):
            state |= self._speak(given, state)
        outputs = [g.typed(state[s.name], DTYPES[s.dtype], s.shape, s.name) for s in self.spec.outputs]
        settings = {"lrkit.settings": self.settings.model_dump_json(), "lrkit.form": "program"}
        model = g.model(list(given.values()), outputs, "reasoner", settings)
        return Program(model, self.spec, tuple(self.routers), self.dialect.part_bytes, self.dialect.errors)

    # ---- prompt

    def _prompt(self, given: dict[str, Value], visual: Value) -> Carried:
        """Prefill: caches, the decision, and everything the latent loop starts from."""
        g, ids, position = self.g, given["input_ids"], given["position_ids"]
        is_visual = g.op("Equal", ids, self.source.image_id)
        count = g.op("Sub", g.op("CumSum", g.cast(is_visual, INT64), 0), [1])
        rows = g.op("Gather", visual, g.op("Max", count, [0]), axis=0)
        embeds = g.op("Where", g.op("Unsqueeze", is_visual, [1]), rows, self.dialect.embed(g, ids))
        self.prompt = Prompt(embeds, count, g.shape_of(ids, 0))
        number = g.op("Range", 0, g.op("Squeeze", self.prompt.num_tokens, [0]), 1)
        visible = g.op("LessOrEqual", g.op("Unsqueeze", number, [0]), g.op("Unsqueeze", number, [1]))
        mask = self.decoder.mask(g, visible)
        rotation = self.dialect.rotation(g, self.decoder.prompt_angles(g, position))
        self.keys: list[Value] = []
        self.values: list[Value] = []

        def remember(key: Value, value: Value) -> Seen:
            self.keys.append(g.op("Transpose", key, perm=[0, 1, 3, 2]))
            self.values.append(value)
            return Seen((Segment(self.keys[-1], self.values[-1], mask),))

        caches = {i: router.empty(g) for i, router in self.routers.items()}
        watch = self.replay.slots > 0
        hidden, caches, passes = self._chunk(g, embeds, None, rotation, lambda _: remember, caches, None, watch)
        state: Carried = {"hidden": hidden}
        state |= self._decide(g, hidden)
        state["prefill_logits"] = g.to_float32(g.op("Squeeze", state.pop("logits"), [0]))
        largest = g.op("ReduceMax", g.op("Reshape", position, [-1]), [0], keepdims=1)
        state["position"] = g.op("Add", largest, [1])
        if watch:
            nothing = np.zeros(self.replay.slots, np.float32)
            state["saliency"] = g.op("Concat", self.decoder.take_saliency(g), nothing, axis=0)
            state["free"] = g.op("Concat", is_visual, nothing.astype(bool), axis=0)
        for i, cache in caches.items():
            state |= cache.state(i)
        if self.routers:
            row = g.op("Unsqueeze", g.op("Concat", *passes, axis=0), [0])
            rest = np.zeros((self.steps, len(self.routers)), np.int64)
            state["routed_depths"] = g.op("Concat", row, rest, axis=0)
        return state

    def _chunk(
        self,
        g: Graph,
        embeds: Value,
        valid: Value | None,
        rotation: Rotation,
        remember: Callable[[int], Remember],
        caches: dict[int, Refined],
        step: Value | None,
        watch: bool,
    ) -> tuple[Value, dict[int, Refined], list[Value]]:
        """All layers over the prompt or a latent step, with routing: (last token's normed state (1, D), caches, passes)."""
        hidden, caches, passes = Hidden(embeds), dict(caches), []
        last_layer = self.dims.num_layers - 1
        single = step is not None and self.chunk == 1
        # Only the last token of the last layer is ever read, unless that layer routes.
        shortened = last_layer not in self.routers and not single
        for i in range(self.dims.num_layers):
            with g.scope(f"layer{i}"):
                only_last = shortened and i == last_layer
                hidden = self.decoder.layer(g, i, hidden, rotation, remember(i), single, only_last, watch)
                if i in self.routers:
                    routed = self.routers[i].route(g, hidden.close(g), valid, rotation, caches[i], step)
                    hidden, caches[i] = Hidden(routed.hidden), routed.cache
                    passes.append(routed.passes)
        if not shortened and not single:
            hidden = Hidden(g.op("Gather", hidden.close(g), [-1], axis=0))
        return hidden.norm(g, self.dialect, "norm"), caches, passes

    def _decide(self, g: Graph, hidden: Value) -> Carried:
        """Reads the head once: does the model want to think on, and what would it say otherwise?"""
        role = self._head_role
        logits = self.dialect.linear(g, hidden, role, part="head" if role == "head" else role)
        best = g.op("ArgMax", logits, axis=-1, keepdims=0)
        spoken = g.op("ArgMax", g.op("Add", logits, self._never_latent), axis=-1, keepdims=0)
        return {"logits": logits, "wants": g.op("Equal", best, [self.source.latent_id]), "token": spoken}

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

    # ---- think

    def _think(self, given: dict[str, Value], before: Carried) -> Carried:
        """The latent loop; returns its final state and what is reported of it."""
        g, fixed = self.g, given["fixed_latents"]
        most = g.op("Min", given["max_latent_steps"], self.steps)
        goes = g.op("And", given["think"], g.op("Or", fixed, g.op("Squeeze", before["wants"], [0])))
        state = {name: before[name] for name in ("hidden", "token", "wants", "position")}
        state |= {"steps": g.value([0]), "length": g.value([0]), "alive": goes}
        if self.steps:
            self.lengths = g.op("Concat", self.prompt.num_tokens, [self.capacity], axis=0)
            initial = state | {k: v for k, v in before.items() if k in ("saliency", "free", "routed_depths") or k.startswith("refined")}
            initial |= self._empty_reports() | self._empty_caches("key", "value", self.capacity)
            types = self._think_types()
            carried = {name: State(value, *types[name]) for name, value in initial.items()}
            state = g.loop(most, goes, carried, lambda *held: self._think_body(fixed, *held))
        steps = g.op("Squeeze", state["steps"], [0])
        still = g.op("Squeeze", state["wants"], [0])
        why = g.op("Where", still, HALTING.index("limit"), HALTING.index("decided"))
        why = g.op("Where", fixed, HALTING.index("fixed"), why)
        why = g.op("Where", given["think"], why, HALTING.index("off"))
        if "routed_depths" in before:
            state.setdefault("routed_depths", before["routed_depths"])
        return state | {"latent_steps": steps, "halting": why}

    def _empty_reports(self) -> Carried:
        steps, slots, g = self.steps, self.replay.slots, self.g
        made = {"latent_states": g.value(np.zeros((steps, self.dims.width), np.float32))}
        if slots:
            made["replayed"] = g.value(np.full((steps, slots), EMPTY, np.int64))
            made["replay_weights"] = g.value(np.zeros((steps, slots), np.float32))
        return made

    def _empty_caches(self, key: str, value: str, capacity: int) -> Carried:
        shape = [1, self.dims.num_key_heads, capacity, self.dims.head_width]
        zeros = self.g.to_floats(self.g.op("ConstantOfShape", shape))
        return {f"{kind}{i}": zeros for i in range(self.dims.num_layers) for kind in (key, value)}

    def _think_types(self) -> dict[str, tuple[ir.DataType, tuple[int | str, ...]]]:
        floats, width, slots, steps = self.dialect.floats, self.dims.width, self.replay.slots, self.steps
        types: dict[str, tuple[ir.DataType, tuple[int | str, ...]]] = {
            "hidden": (floats, (1, width)), "token": (INT64, (1,)), "wants": (BOOL, (1,)), "position": (INT64, (1,)),
            "steps": (INT64, (1,)), "length": (INT64, (1,)), "alive": (BOOL, ()), "saliency": (FLOAT32, ("P+K",)),
            "free": (BOOL, ("P+K",)), "latent_states": (FLOAT32, (steps, width)), "replayed": (INT64, (steps, slots)),
            "replay_weights": (FLOAT32, (steps, slots)), "routed_depths": (INT64, (steps + 1, len(self.routers))),
        }  # fmt: skip
        types |= self._cache_types(self.capacity)
        for router in self.routers.values():
            types |= router.state_types()
        return types

    def _cache_types(self, capacity: int) -> dict[str, tuple[ir.DataType, tuple[int | str, ...]]]:
        shape = (1, self.dims.num_key_heads, capacity, self.dims.head_width)
        names = [f"{kind}{i}" for i in range(self.dims.num_layers) for kind in ("key", "value")]
        return dict.fromkeys(names, (self.dialect.floats, shape))

    def _think_body(self, fixed: Value, g: Graph, _: Value, held: Carried) -> tuple[Value, Carried]:
        """One latent step."""
        new, latent = dict(held), self._as_input(g, held["hidden"])
        replayed = self.replay.select(g, self.prompt, held["saliency"], held["free"]) if self.replay.slots else None
        embeds, valid, offsets = self._latent_chunk(g, latent, replayed)
        # Once halted there may be no room left: then the writes go to the last chunk's place, which nobody reads again.
        start = g.op("Min", held["length"], [self.capacity - self.chunk])
        slots = g.op("Add", start, offsets)
        rotation = self.dialect.rotation(g, self.decoder.angles(g, g.op("Add", held["position"], offsets)))
        visible = g.op("LessOrEqual", np.arange(self.capacity)[None], g.op("Unsqueeze", slots, [1]))
        mask = self.decoder.row_mask(g, visible) if self.chunk == 1 else self.decoder.mask(g, visible)
        where = places(g, slots, self.dims.num_key_heads)
        caches = {i: Refined.of(i, held) for i in self.routers}
        step = g.op("Min", held["steps"], [self.steps - 1])
        watch = self.replay.slots > 0
        hidden, caches, passes = self._chunk(
            g, embeds, valid, rotation, lambda i: self._remember(g, i, held, new, where, self._read(i), mask), caches, step, watch
        )
        decided = self._decide(g, hidden)
        del decided["logits"]
        moved: Carried = {"hidden": hidden, **decided}
        ahead = g.op("Add", g.op("Gather", offsets, [-1]), [1])
        moved |= {name: g.op("Add", held[name], by) for name, by in (("steps", [1]), ("length", ahead), ("position", ahead))}
        moved |= self._report(g, held, step, hidden, replayed, passes)
        for name, value in moved.items():
            new[name] = self.dialect.keep(g, held["alive"], value, held[name], name in ("free", "wants"))
        for i, cache in caches.items():
            new |= cache.state(i)
        wants = g.op("Or", fixed, g.op("Squeeze", new["wants"], [0]))
        new["alive"] = wants if self.dialect.ort else g.op("And", held["alive"], wants)
        return new["alive"], new

    def _read(self, layer: int) -> Past:
        return Past(Segment(self.keys[layer], self.values[layer]), self.lengths)

    def _latent_chunk(self, g: Graph, latent: Value, replayed: Replayed | None) -> tuple[Value, Value | None, Value]:
        """(embeddings (S, D), which are real (S,), place of each after the last key (S,)).

        Real tokens take the places 0, 1, ...; the latent follows the last of them, unread slots come behind it."""
        if replayed is None:
            return latent, None, g.value([0])
        numbers = np.arange(self.replay.num_tokens, dtype=np.int64)
        real = g.cast(replayed.valid, INT64)
        behind = g.op("Sub", numbers + 1, real)
        count = g.op("ReduceSum", real, [0], keepdims=1)
        offsets = g.op("Concat", behind, count, axis=0)
        valid = g.op("Concat", replayed.valid, np.ones(1, bool), axis=0) if self.routers else None
        return g.op("Concat", replayed.tokens, latent, axis=0), valid, offsets

    def _remember(
        self, g: Graph, layer: int, held: Carried, new: Carried, where: Value, before: Past, mask: Mask
    ) -> Remember:
        """Writes new keys into the loop's cache; earlier ones are read where they are."""

        def remember(key: Value, value: Value) -> Seen:
            for name, fresh in ((f"key{layer}", key), (f"value{layer}", value)):
                new[name] = g.op("ScatterND", held[name], where, fresh)
            own = Segment(g.op("Transpose", new[f"key{layer}"], perm=[0, 1, 3, 2]), new[f"value{layer}"], mask)
            return Seen((before.segment, own), before.lengths)

        return remember

    def _report(
        self, g: Graph, held: Carried, step: Value, hidden: Value, replayed: Replayed | None, passes: list[Value]
    ) -> Carried:
        """Rows of the reports for this step, and what the next one selects from."""
        at = g.op("Unsqueeze", step, [1])
        made = {"latent_states": g.op("ScatterND", held["latent_states"], at, g.to_float32(hidden))}
        if replayed is not None:
            made["replayed"] = g.op("ScatterND", held["replayed"], at, g.op("Unsqueeze", replayed.index, [0]))
            weights = g.op("Unsqueeze", replayed.weights, [0])
            made["replay_weights"] = g.op("ScatterND", held["replay_weights"], at, weights)
            made["free"] = replayed.free
            columns = g.op("Add", self.prompt.num_tokens, [self.replay.slots])
            made["saliency"] = g.op("Slice", self.decoder.take_saliency(g), [0], columns, [0])
        if passes:
            row = g.op("Unsqueeze", g.op("Concat", *passes, axis=0), [0])
            made["routed_depths"] = g.op("ScatterND", held["routed_depths"], g.op("Add", at, [1]), row)
        return made

    def _as_input(self, g: Graph, hidden: Value) -> Value:
        """A hidden state as the next latent's input embedding (eq. 1)."""
        kind = self.settings.think.latent_scale
        if kind == "none":
            return hidden
        if kind == "learned":
            assert self.source.latent_scale is not None
            return g.op("Mul", hidden, self.source.latent_scale)
        wide = g.to_float32(hidden)
        length = g.op("Max", g.op("ReduceL2", wide, [1], keepdims=1), np.array(np.finfo(np.float32).tiny))
        return g.to_floats(g.op("Mul", wide, g.op("Div", np.array(self.source.latent_norm, np.float32), length)))

    # ---- speak

    def _speak(self, given: dict[str, Value], before: Carried) -> Carried:
        """The speech loop. Its first token was read from the head by the prompt or the last latent step."""
        g, capacity = self.g, self.limits.max_new_tokens
        most = g.op("Min", given["max_new_tokens"], capacity)
        going = self._goes_on(g, before["token"])
        first = g.op("Where", going, before["token"], EMPTY)
        rest = np.full(capacity - 1, EMPTY, np.int64)
        self._context(before)
        state: dict[str, tuple[Value, ir.DataType, tuple[int | str, ...]]] = {
            "token": (before["token"], INT64, (1,)), "position": (before["position"], INT64, (1,)),
            "fed": (g.value([0]), INT64, (1,)), "count": (g.cast(g.op("Unsqueeze", going, [0]), INT64), INT64, (1,)),
            "token_ids": (g.op("Concat", first, rest, axis=0), INT64, (capacity,)), "alive": (going, BOOL, ()),
        }  # fmt: skip
        types = self._cache_types(capacity)
        state |= {name: (value, *types[name]) for name, value in self._empty_caches("key", "value", capacity).items()}
        carried = {name: State(*entry) for name, entry in state.items()}
        done = g.loop(g.op("Sub", most, 1), going, carried, self._speak_body)
        spoken = g.op("Squeeze", done["fed"], [0])
        return {
            "token_ids": done["token_ids"], "num_tokens": g.op("Squeeze", done["count"], [0]),
            "finished": g.op("Not", done["alive"]), "spoken_steps": spoken,
            "ar_steps": g.op("Add", spoken, before["latent_steps"]),
        }  # fmt: skip

    def _context(self, before: Carried) -> None:
        """Prompt and latent keys as one read-only segment; latent slots that no step filled are masked."""
        g, speech = self.g, self.limits.max_new_tokens
        self.context_mask: Mask | None = None
        self.context = list(zip(self.keys, self.values, strict=True))
        length = self.prompt.num_tokens
        if self.steps:
            self.context = []
            for i in range(self.dims.num_layers):
                key = g.op("Transpose", before[f"key{i}"], perm=[0, 1, 3, 2])
                keys = g.op("Concat", self.keys[i], key, axis=3)
                self.context.append((keys, g.op("Concat", self.values[i], before[f"value{i}"], axis=2)))
            filled = g.op("Less", np.arange(self.capacity), before["length"])
            shape = g.op("Concat", [1], length, axis=0)
            always = g.op("Expand", np.ones((1, 1), bool), shape)
            visible = g.op("Concat", always, g.op("Unsqueeze", filled, [0]), axis=1)
            self.context_mask = self.decoder.row_mask(g, visible)
            length = g.op("Add", length, [self.capacity])
        self.speech_lengths = g.op("Concat", length, [speech], axis=0)

    def _heard(self, layer: int) -> Past:
        return Past(Segment(*self.context[layer], self.context_mask), self.speech_lengths)

    def _speak_body(self, g: Graph, _: Value, held: Carried) -> tuple[Value, Carried]:
        """Feeds one token and reads the next."""
        new, capacity = dict(held), self.limits.max_new_tokens
        slot = g.op("Min", held["fed"], [capacity - 1])
        rotation = self.dialect.rotation(g, self.decoder.angles(g, held["position"]))
        mask = self.decoder.row_mask(g, g.op("LessOrEqual", np.arange(capacity)[None], g.op("Unsqueeze", slot, [1])))
        where = places(g, slot, self.dims.num_key_heads)
        hidden = Hidden(self.dialect.embed(g, held["token"]))
        for i in range(self.dims.num_layers):
            with g.scope(f"layer{i}"):
                remember = self._remember(g, i, held, new, where, self._heard(i), mask)
                hidden = self.decoder.layer(g, i, hidden, rotation, remember, single=True)
        role = self._head_role
        normed = hidden.norm(g, self.dialect, "norm")
        bias = g.value(self._never_latent)
        logits = self.dialect.linear(g, normed, role, bias, part="head" if role == "head" else role)
        token = g.op("ArgMax", logits, axis=-1, keepdims=0)
        alive, keep = held["alive"], self.dialect.keep
        going = self._goes_on(g, token)
        if not self.dialect.ort:
            going = g.op("And", alive, going)
        written = g.op("ScatterND", held["token_ids"], g.op("Unsqueeze", held["count"], [1]), g.op("Where", going, token, EMPTY))
        new["token_ids"] = keep(g, alive, written, held["token_ids"])
        new["token"] = keep(g, alive, token, held["token"])
        new["count"] = g.op("Add", held["count"], g.cast(going, INT64))
        for name in ("fed", "position"):
            new[name] = keep(g, alive, g.op("Add", held[name], [1]), held[name])
        new["alive"] = going
        return going, new

    def _goes_on(self, g: Graph, token: Value) -> Value:
        return g.op("Not", g.op("Squeeze", g.op("Equal", token, [self.eos_id]), [0]))
