"""The whole reasoner as one graph: prompt, latent loop, speech loop (method sections 1 to 5).

    ids, patches --> vision tower --> prompt --> Loop: think --> Loop: speak --> token ids, steps, replayed, depths

Place in the pipeline: bundle.py calls `build_program` and saves the model; check.py proves it equal to torch. What
one chunk computes is written in chunks.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lrkit.contract.bundle.io_spec import EMPTY, HALTING, DType, IoSpec, program_spec
from lrkit.export.graph.chunks import BOOL, FLOAT32, INT64, Chunks, Read
from lrkit.export.graph.decoder import Mask, Past, Segment
from lrkit.export.graph.nodes import Carried, Graph, State, Value
from lrkit.export.graph.tower import Tower

DTYPES: dict[DType, ir.DataType] = {
    "int64": INT64, "float32": FLOAT32, "float16": ir.DataType.FLOAT16, "uint8": ir.DataType.UINT8, "bool": BOOL,
}  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A built program."""

    model: ir.Model
    spec: IoSpec
    routed_layers: tuple[int, ...]
    part_bytes: dict[str, int]
    errors: dict[str, float]
    """Relative error of each quantized matrix."""


def build_program(chunks: Chunks, end_ids: Sequence[int], tower: Tower) -> Program:
    """The form `program` of one reasoner."""
    return _Builder(chunks, end_ids).build(tower)


class _Builder:
    def __init__(self, chunks: Chunks, end_ids: Sequence[int]) -> None:
        self.chunks, self.dialect, self.end_ids = chunks, chunks.dialect, end_ids
        self.steps, self.capacity, self.limits = chunks.steps, chunks.capacity, chunks.limits
        self.spec = program_spec(chunks.shape)
        self.g = Graph(self.dialect.floats)
        # On a CPU a node costs more than to copy the prompt's keys; on a GPU it is the other way round.
        self.joined = self.dialect.fused and self.steps > 0

    def build(self, tower: Tower) -> Program:
        g = self.g
        given = {spec.name: g.input(spec.name, DTYPES[spec.dtype], spec.shape) for spec in self.spec.inputs}
        with g.scope("vision"):
            visual = tower(g, given)
        with g.scope("prompt"):
            read = self.chunks.prompt(g, given, visual, self.joined)
        with g.scope("think"):
            state = read.state | self._think(given, read)
        with g.scope("speak"):
            state |= self._speak(given, read, state)
        outputs = [g.typed(state[s.name], DTYPES[s.dtype], s.shape, s.name) for s in self.spec.outputs]
        settings = {"lrkit.settings": self.chunks.settings.model_dump_json(), "lrkit.form": "program"}
        model = g.model(list(given.values()), outputs, "reasoner", settings)
        layers = tuple(self.chunks.routers)
        return Program(model, self.spec, layers, self.dialect.store.part_bytes, self.dialect.store.errors)

    def _think(self, given: Carried, read: Read) -> Carried:
        """The latent loop; returns its final state and what is reported of it."""
        g, fixed, before = self.g, given["fixed_latents"], read.state
        most = g.op("Min", given["max_latent_steps"], self.steps)
        goes = g.op("And", given["think"], g.op("Or", fixed, g.op("Squeeze", before["wants"], [0])))
        joined = self.joined
        state = before | {"steps": g.value([0]), "length": g.value([0]), "alive": goes}
        if not joined:
            state["token"] = self.chunks.spoken(g, before["logits"])
        if self.steps:
            tables = self.chunks.tables(g, read) if joined else None
            prompt = read.prompt
            if joined and self.chunks.replay.slots:
                prompt = prompt.pad(g, self.capacity, self.chunks.dims.width)
            lengths = None if joined else g.op("Concat", read.prompt.num_tokens, [self.capacity], axis=0)
            state |= self.chunks.joined_caches(g, read) if joined else self._apart()
            carried = {name: State(state[name], *kind) for name, kind in self.chunks.think_types(joined).items()}
            rows = self.chunks.reports.row_types if joined else {}

            def past(layer: int) -> Past:
                return Past(() if joined else (Segment(read.keys[layer], read.values[layer]),), lengths)

            def body(inner: Graph, iteration: Value, held: Carried) -> tuple[Value, Carried]:
                new = self.chunks.think(inner, held, prompt, past, tables, iteration)
                wants = inner.op("Or", fixed, inner.op("Squeeze", new["wants"], [0]))
                if joined:
                    return wants, new
                new["alive"] = self.dialect.still(inner, held["alive"], wants)
                return new["alive"], new

            state |= g.loop(most, goes, carried, body, rows)
            if joined:
                state["token"] = self.chunks.spoken(g, state["logits"])
                state |= self.chunks.thought(g, read, state)
                state |= self.chunks.reports.collected(g, state)
        still = g.op("Squeeze", state["wants"], [0])
        why = g.op("Where", still, HALTING.index("limit"), HALTING.index("decided"))
        why = g.op("Where", fixed, HALTING.index("fixed"), why)
        why = g.op("Where", given["think"], why, HALTING.index("off"))
        return state | {"latent_steps": g.op("Squeeze", state["steps"], [0]), "halting": why}

    def _apart(self) -> Carried:
        """What the latent loop carries beside the prompt's state: its own caches, and reports to write into."""
        return self.chunks.reports.empty(self.g) | self.chunks.empty_caches(self.g, self.capacity)

    def _speak(self, given: Carried, read: Read, before: Carried) -> Carried:
        """The speech loop. Its first token was read from the head by the prompt or the last latent step."""
        g, capacity = self.g, self.limits.max_new_tokens
        most = g.op("Min", given["max_new_tokens"], capacity)
        going = self._goes_on(g, before["token"])
        first = g.op("Where", going, before["token"], EMPTY)
        rest = np.full(capacity - 1, EMPTY, np.int64)
        growing = self.dialect.fused  # TensorRT's loops carry nothing that changes its shape
        caches = self.chunks.empty_caches(g, 0 if growing else capacity)
        state = {name: before[name] for name in ("token", "position")} | caches
        state |= {"fed": g.value([0]), "count": g.cast(g.op("Unsqueeze", going, [0]), INT64), "alive": going}
        state["token_ids"] = g.op("Concat", first, rest, axis=0)
        types = self.chunks.speak_types(growing) | {
            "count": (INT64, (1,)), "alive": (BOOL, ()), "token_ids": (INT64, (capacity,)),
        }  # fmt: skip
        past = self._context(read, before)

        def body(inner: Graph, _: Value, held: Carried) -> tuple[Value, Carried]:
            new = self.chunks.speak(inner, held, past(inner, held), growing)
            self._note_token(inner, held, new)
            return new["alive"], new

        carried = {name: State(state[name], *kind) for name, kind in types.items()}
        done = g.loop(g.op("Sub", most, 1), going, carried, body)
        spoken = g.op("Squeeze", done["fed"], [0])
        return {
            "token_ids": done["token_ids"], "num_tokens": g.op("Squeeze", done["count"], [0]),
            "finished": g.op("Not", done["alive"]), "spoken_steps": spoken,
            "ar_steps": g.op("Add", spoken, before["latent_steps"]),
        }  # fmt: skip

    def _note_token(self, g: Graph, held: Carried, new: Carried) -> None:
        """Writes the new token behind the others, unless it is the end token."""
        alive = held["alive"]
        going = self.dialect.still(g, alive, self._goes_on(g, new["token"]))
        at = g.op("Unsqueeze", held["count"], [1])
        written = g.op("ScatterND", held["token_ids"], at, g.op("Where", going, new["token"], EMPTY))
        new["token_ids"] = self.dialect.keep(g, alive, written, held["token_ids"])
        new["count"] = g.op("Add", held["count"], g.cast(going, INT64))
        new["alive"] = going

    def _goes_on(self, g: Graph, token: Value) -> Value:
        first, *others = (g.op("Squeeze", g.op("Equal", token, [end]), [0]) for end in self.end_ids)
        ended = first
        for other in others:
            ended = g.op("Or", ended, other)
        return g.op("Not", ended)

    def _context(self, read: Read, before: Carried) -> Callable[[Graph, Carried], Callable[[int], Past]]:
        """Prompt and latent keys as one read-only segment, for a body of the speech loop. In TensorRT the latent ones
        are all slots, and those that no step filled are masked."""
        g, num_tokens, mask, layers = self.g, read.prompt.num_tokens, None, range(len(read.keys))
        segments = list(zip(read.keys, read.values, strict=True))
        own = [(before[f"key{i}"], before[f"value{i}"]) for i in layers] if self.steps else []
        if self.steps and self.dialect.fused:
            num_tokens, unused = before["length"], before["unused"]
            segments = [(self._behind(key, unused), self._behind(value, unused)) for key, value in own]
        elif self.steps:
            mask = self._context_mask(num_tokens, before["length"])
            num_tokens = g.op("Add", num_tokens, [self.capacity])
            pairs = zip(segments, own, strict=True)
            segments = [(g.op("Concat", a, c, axis=2), g.op("Concat", b, d, axis=2)) for (a, b), (c, d) in pairs]
        fixed = None if self.dialect.fused else g.op("Concat", num_tokens, [self.limits.max_new_tokens], axis=0)

        def past(inner: Graph, held: Carried) -> Callable[[int], Past]:
            lengths = fixed or inner.op("Concat", num_tokens, inner.op("Add", held["fed"], [1]), axis=0)
            return lambda layer: Past((Segment(*segments[layer], mask),), lengths)

        return past

    def _behind(self, cache: Value, unused: Value) -> Value:
        return self.g.op("Slice", cache, unused, [np.iinfo(np.int64).max], [2])

    def _context_mask(self, num_tokens: Value, length: Value) -> Mask:
        g = self.g
        filled = g.op("Unsqueeze", g.op("Less", np.arange(self.capacity), length), [0])
        always = g.op("Expand", np.ones((1, 1), bool), g.op("Concat", [1], num_tokens, axis=0))
        return self.chunks.decoder.row_mask(g, g.op("Concat", always, filled, axis=1))
