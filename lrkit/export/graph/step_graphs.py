"""The form `step`: prompt, think and speak as graphs of their own, which a host runs one after the other.

This form serves engines that cannot have a loop inside the graph (captured CUDA graphs), and answers that are streamed.
What a chunk computes is the same code as in the form `program` (read_prompt.py, think.py,
speak.py). The host's loop is lrkit/runtime/engines/programs/step_session.py.

Every graph takes the state by name and returns it as `new_<name>`; caches have a fixed capacity, so that input and
output can share their memory. Weights lie once in one data file.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lrkit.contract.bundle.io_spec import LEFT, OWN_INPUTS, WINDOWS, DType, IoSpec, TensorSpec, program_spec
from lrkit.contract.bundle.manifest import StepName
from lrkit.export.graph.latent_reports import Types
from lrkit.export.graph.layers import Mask, Past, Segment
from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.program import DTYPES
from lrkit.export.graph.pruning_nodes import BEHIND, Left
from lrkit.export.graph.read_prompt import read_prompt
from lrkit.export.graph.replay_nodes import Prompt
from lrkit.export.graph.saving import WeightFile, save_models
from lrkit.export.graph.separate_caches import SeparateCaches
from lrkit.export.graph.speak import speak
from lrkit.export.graph.stack import FLOAT32, INT64, Stack
from lrkit.export.graph.think import think
from lrkit.export.graph.tower_writer import Tower
from lrkit.export.graph.two_parts import see

DTYPE_NAMES: dict[ir.DataType, DType] = {dtype: name for name, dtype in DTYPES.items()}
HOST_INPUTS = set(OWN_INPUTS) - {"input_ids"} | {WINDOWS}
"""Inputs of a program that the host's loop decides by, or gives to later steps."""


@dataclass(frozen=True)
class Step:
    """One graph."""

    model: ir.Model
    spec: IoSpec


def build_steps(stack: Stack, tower: Tower) -> dict[StepName, Step]:
    """prompt, speak and, where the checkpoint thinks, think."""
    writer = _Steps(stack)
    made: dict[StepName, Step] = {"prompt": writer.prompt(tower)}
    if stack.steps:
        made["think"] = writer.think()
    made["speak"] = writer.speak()
    return made


def step_spec(stack: Stack) -> IoSpec:
    """Inputs and outputs of a whole answer: those of the form `program`."""
    return program_spec(stack.shape).model_copy(update={"form": "step"})


def save_steps(
    steps: dict[StepName, Step], folder: Path, role: str, weights: WeightFile | None = None
) -> tuple[dict[StepName, str], str]:
    """Writes the graphs; the weights of all lie in one file, `weights` where some are there already. Returns (file per
    step, data file)."""
    data = f"{role}.onnx.data"
    files: dict[StepName, str] = {name: f"{role}.{name}.onnx" for name in steps}
    save_models({files[name]: step.model for name, step in steps.items()}, folder, data, weights)
    return files, data


class _Steps:
    def __init__(self, stack: Stack) -> None:
        self.stack, self.dims, self.caches = stack, stack.dims, SeparateCaches(stack)

    def prompt(self, tower: Tower) -> Step:
        """Reads the prompt: what thinking starts from, and the prompt's keys."""
        g = self._graph()
        asked = [spec for spec in program_spec(self.stack.shape).inputs if spec.name not in HOST_INPUTS]
        given = {spec.name: g.input(spec.name, DTYPES[spec.dtype], spec.shape) for spec in asked}
        with g.scope("vision"):
            visual = see(g, self.stack, tower, given)
        with g.scope("prompt"):
            read = read_prompt(g, self.caches, given, visual)
            vocabulary = self.dims.vocabulary
            types: Types = {"prefill_logits": (FLOAT32, (vocabulary,))} | self._prompt_types()
            kept = {f"prompt_key{i}": key for i, key in enumerate(read.keys)}
            kept |= {f"prompt_value{i}": value for i, value in enumerate(read.values)}
            kept |= {self._rows: read.prompt.rows, "visual_index": read.prompt.visual_index}
            if read.left is not None:
                kept["survivors"] = read.left.index
            state = read.state | kept | {"token": self.stack.spoken(g, read.state["logits"])}
            thinks = {name: kind for name, kind in self.caches.think_types.items() if name in state}
            if not self.stack.steps:
                names = {"token", "wants", "position", "routed_depths"}
                thinks = {name: kind for name, kind in thinks.items() if name in names}
            types |= thinks
            if "routed_prompt" in read.state:
                types["routed_prompt"] = (INT64, (len(self.stack.routers), "P"))
            left = [one for one in step_spec(self.stack).outputs if one.name.startswith(LEFT)]
            types |= {one.name: (DTYPES[one.dtype], one.shape) for one in left}
        return self._finish(g, given, {name: state[name] for name in types}, types, prefix="")

    def think(self) -> Step:
        """One latent step."""
        g = self._graph()
        types = {name: kind for name, kind in self.caches.think_types.items() if name != "alive"}
        held, given = self._inputs(g, types), self._inputs(g, self._prompt_types())
        length, windows = g.shape_of(given["prompt_value0"], 2), None
        if (closer := self.stack.replay.closer) is not None:
            given |= self._inputs(g, {WINDOWS: (DTYPES["uint8"], ("windows", *closer.shape))})
            windows = self.stack.dialect.choosable(g, given[WINDOWS])
        rows = given.get(self._rows, held["hidden"])
        prompt = Prompt(rows, given.get("visual_index", length), length, windows)
        left = self._left(g, given)
        latents = self.caches.latents(g, prompt, lambda layer: self._prompt_segment(given, layer), left)
        with g.scope("think"):
            new = think(g, self.caches, held, latents)
        return self._finish(g, held | given, new, types | self._logits)

    def speak(self) -> Step:
        """Feeds one token and reads the next."""
        g = self._graph()
        types, capacity = self.caches.speak_types, self.stack.limits.max_new_tokens
        held = self._inputs(g, types)
        keys = {
            name: kind for name, kind in self._prompt_types().items() if name.startswith(("prompt_key", "prompt_value"))
        }
        latent: Types = {}
        if self.stack.steps:
            caches = self.caches.types(self.stack.capacity)
            latent = {f"latent_{name}": kind for name, kind in caches.items()} | {"length": (INT64, (1,))}
        given = self._inputs(g, keys | latent)
        with g.scope("speak"):
            past = self._speech_past(g, given, capacity)
            new = speak(g, self.caches, held, past)
        return self._finish(g, held | given, new, types | self._logits)

    @property
    def _logits(self) -> Types:
        """Of the next word, where they are asked for."""
        return {"logits": (FLOAT32, (1, self.dims.vocabulary))} if self.stack.tells_logits else {}

    def _speech_past(self, g: Graph, given: Carried, capacity: int) -> Callable[[int], Past]:
        names = ["prompt_value0"]
        if self.stack.settings.prune.active:
            names.append(f"prompt_value{self.dims.num_layers - 1}")
        room = [self.stack.capacity, capacity] if self.stack.steps else [capacity]
        lengths = [g.op("Concat", g.shape_of(given[name], 2), room, axis=0) for name in names]
        if not self.stack.steps:
            return lambda i: Past((self._prompt_segment(given, i),), lengths[self.stack.is_behind(i)])
        filled = g.op("Unsqueeze", g.op("Less", np.arange(self.stack.capacity), given["length"]), [0])
        mask = self.stack.decoder.row_mask(g, filled)

        def past(layer: int) -> Past:
            latent = Segment(given[f"latent_key{layer}"], given[f"latent_value{layer}"], mask)
            return Past((self._prompt_segment(given, layer), latent), lengths[self.stack.is_behind(layer)])

        return past

    def _left(self, g: Graph, given: Carried) -> Left | None:
        """Who is left of the prompt, where nothing asks for its mask any more."""
        index = given.get("survivors")
        if index is None:
            return None
        nothing = g.value(np.zeros((1, 1), np.float32))
        return Left(index, g.shape_of(index, 0), Mask(nothing, nothing))

    def _prompt_segment(self, given: Carried, layer: int) -> Segment:
        return Segment(given[f"prompt_key{layer}"], given[f"prompt_value{layer}"])

    def _prompt_types(self) -> Types:
        """What the prompt leaves for later chunks to read."""
        heads, width, floats = self.dims.num_key_heads, self.dims.head_width, self.stack.dialect.floats
        types: Types = {}
        for i in range(self.dims.num_layers):
            kind = floats, (1, heads, self.stack.columns_of(i), width)
            types |= dict.fromkeys((f"prompt_key{i}", f"prompt_value{i}"), kind)
        if self.stack.replay.slots:
            columns = self.stack.columns
            if self.stack.replay.closer is None:
                types[self._rows] = floats, (columns, self.dims.row_width)
            types["visual_index"] = INT64, (columns,)
        if self.stack.steps and self.stack.settings.prune.active:
            types["survivors"] = (INT64, (BEHIND,))
        return types

    @property
    def _rows(self) -> str:
        """Name of the prompt's rows."""
        return "prompt_rows" if self.dims.deep_layers else "prompt_embeds"

    def _graph(self) -> Graph:
        self.stack.dialect.store.another_graph()
        return Graph(self.stack.dialect.floats)

    def _inputs(self, g: Graph, types: Types) -> Carried:
        return {name: g.input(name, *kind) for name, kind in types.items()}

    def _finish(self, g: Graph, inputs: Carried, outputs: Carried, types: Types, prefix: str = "new_") -> Step:
        made = [g.typed(outputs[name], *types[name], name=f"{prefix}{name}") for name in types]
        model = g.model(list(inputs.values()), made, "reasoner", {"lrkit.form": "step"})
        return Step(model, IoSpec(form="step", inputs=_specs(model.graph.inputs), outputs=_specs(model.graph.outputs)))


def _specs(values: Iterable[Value]) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for value in values:
        assert value.shape is not None and value.dtype is not None
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        name = str(value.name)
        specs.append(TensorSpec(name=name, dtype=DTYPE_NAMES[value.dtype], shape=shape, meaning=_meaning(name)))
    return tuple(specs)


MEANINGS = {
    "hidden": "hidden state of the last position, after the final norm",
    "token": "token that would be spoken next",
    "wants": "true where the model wants to think on",
    "position": "rotary position of the next token",
    "steps": "latent steps taken",
    "length": "keys in the latent cache",
    "saliency": "attention from the last position to each column of the prompt, then K columns that are never free",
    "free": "true for visual tokens not replayed yet",
    "fed": "spoken tokens fed back",
    "logits": "of the word that would be spoken next",
    "prompt_embeds": "input embeddings of the prompt",
    "prompt_rows": "input embeddings of the prompt, then what its tokens add behind each deep layer",
    "visual_index": "number of each visual token over all pictures",
    "survivors": "columns of the prompt that the layers behind pruning hold keys of",
    WINDOWS: "by visual token: what it covers in the full picture, cut into patches",
}


def _meaning(name: str) -> str:
    bare = name.removeprefix("new_")
    kind = bare.rstrip("0123456789")
    caches = {"key": "keys", "value": "values"}
    for ending, what in caches.items():
        if kind.endswith(ending):
            return f"{what} of layer {bare[len(kind) :]}: {kind.removesuffix(ending).rstrip('_') or 'this loop'}"
    return MEANINGS.get(bare, f"see the form program: {bare}")
