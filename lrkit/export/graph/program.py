"""The whole reasoner as one graph: prompt, latent loop, speech loop (method sections 1 to 5).

    ids, patches --> vision tower --> prompt --> Loop: think --> Loop: speak --> token ids, steps, replayed, depths

Place in the pipeline: bundle.py calls `build_program` and saves the model; check.py proves it equal to torch. What
one chunk computes is written in read_prompt.py, think.py and speak.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lrkit.contract.bundle.io_spec import EMPTY, HALTING, PAST, DType, IoSpec, program_spec
from lrkit.export.graph.caches import Read
from lrkit.export.graph.dialects import DIALECTS
from lrkit.export.graph.nodes import Carried, Graph, State, Value
from lrkit.export.graph.read_prompt import read_prompt
from lrkit.export.graph.speak import speak
from lrkit.export.graph.stack import BOOL, FLOAT32, INT64, Stack
from lrkit.export.graph.think import think
from lrkit.export.graph.tower_writer import Tower
from lrkit.export.graph.two_parts import see

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


def build_program(stack: Stack, end_ids: Sequence[int], tower: Tower) -> Program:
    """The form `program` of one reasoner, with caches as its dialect has them."""
    return _Builder(stack, end_ids).build(tower)


class _Builder:
    def __init__(self, stack: Stack, end_ids: Sequence[int]) -> None:
        self.stack, self.dialect, self.end_ids = stack, stack.dialect, end_ids
        self.caches = DIALECTS[stack.dialect.target.dialect].caches(stack)
        self.spec = program_spec(stack.shape)
        self.g = Graph(self.dialect.floats)

    def build(self, tower: Tower) -> Program:
        g = self.g
        given = {spec.name: g.input(spec.name, DTYPES[spec.dtype], spec.shape) for spec in self.spec.inputs}
        if self.dialect.fused:
            for name, value in given.items():
                if name.startswith(PAST):
                    g.default(value)
        with g.scope("vision"):
            visual = see(g, self.stack, tower, given)
        with g.scope("prompt"):
            read = read_prompt(g, self.caches, given, visual)
        with g.scope("think"):
            state = read.state | self._think(given, read)
        with g.scope("speak"):
            state |= self._speak(given, read, state)
        outputs = [g.typed(state[s.name], DTYPES[s.dtype], s.shape, s.name) for s in self.spec.outputs]
        settings = {"lrkit.settings": self.stack.settings.model_dump_json(), "lrkit.form": "program"}
        model = g.model(list(given.values()), outputs, "reasoner", settings)
        store = self.dialect.store
        return Program(model, self.spec, tuple(self.stack.routers), store.part_bytes, store.errors)

    def _think(self, given: Carried, read: Read) -> Carried:
        """The latent loop; returns its final state and what is reported of it."""
        g, fixed, before = self.g, given["fixed_latents"], read.state
        most = g.op("Min", given["max_latent_steps"], self.stack.steps)
        goes = g.op("And", given["think"], g.op("Or", fixed, g.op("Squeeze", before["wants"], [0])))
        state = before | {"steps": g.value([0]), "length": g.value([0]), "alive": goes}
        if self.stack.steps:
            state |= self._latent_loop(most, goes, fixed, read, state)
        else:
            state["token"] = self.stack.spoken(g, before["logits"])
        still = g.op("Squeeze", state["wants"], [0])
        why = g.op("Where", still, HALTING.index("limit"), HALTING.index("decided"))
        why = g.op("Where", fixed, HALTING.index("fixed"), why)
        why = g.op("Where", given["think"], why, HALTING.index("off"))
        return state | {"latent_steps": g.op("Squeeze", state["steps"], [0]), "halting": why}

    def _latent_loop(self, most: Value, goes: Value, fixed: Value, read: Read, before: Carried) -> Carried:
        g, caches = self.g, self.caches
        added, latents = caches.begin(g, read)
        state = before | added
        carried = {name: State(state[name], *kind) for name, kind in caches.think_types.items()}

        def body(inner: Graph, iteration: Value, held: Carried) -> tuple[Value, Carried]:
            new = think(inner, caches, held, latents, iteration)
            wants = inner.op("Or", fixed, inner.op("Squeeze", new["wants"], [0]))
            return caches.goes_on(inner, held, new, wants), new

        state |= g.loop(most, goes, carried, body, caches.row_types)
        return state | caches.finish(g, read, state)

    def _speak(self, given: Carried, read: Read, before: Carried) -> Carried:
        """The speech loop. Its first token was read from the head by the prompt or the last latent step."""
        g, capacity = self.g, self.stack.limits.max_new_tokens
        most = g.op("Min", given["max_new_tokens"], capacity)
        going = self._goes_on(g, before["token"])
        first = g.op("Where", going, before["token"], EMPTY)
        rest = np.full(capacity - 1, EMPTY, np.int64)
        state = {name: before[name] for name in ("token", "position")} | self.caches.empty_speech(g)
        state |= {"fed": g.value([0]), "count": g.cast(g.op("Unsqueeze", going, [0]), INT64), "alive": going}
        state["token_ids"] = g.op("Concat", first, rest, axis=0)
        types = self.caches.speak_types | {
            "count": (INT64, (1,)), "alive": (BOOL, ()), "token_ids": (INT64, (capacity,)),
        }  # fmt: skip
        past = self.caches.context(g, read, before)

        def body(inner: Graph, _: Value, held: Carried) -> tuple[Value, Carried]:
            new = speak(inner, self.caches, held, past(inner, held))
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
