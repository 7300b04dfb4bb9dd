"""What goes into a program and what comes out: names, types, axes and meaning, declared once.

Place in the pipeline: lrkit/export builds the graph from it and checks the finished file against it; the runtime
feeds and reads a program by it; a bundle carries it, so that a program can be driven from any language without lrkit.
Torch-free.

A shape holds numbers and axis names; an axis name stands for the same number wherever it appears in one call.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from lrkit.config import Config

DType = Literal["int64", "float32", "float16", "uint8", "bool"]
Form = Literal["program", "step"]

HALTING = ("off", "decided", "limit", "fixed")
"""Meaning of the output `halting`: latents were masked; the model stopped thinking; it still wanted to; the number
was given."""

EMPTY = -1
"""What fills the unused part of `token_ids` and `replayed`."""


OWN_INPUTS = ("input_ids", "think", "fixed_latents", "max_latent_steps", "max_new_tokens")
"""Inputs that every program has; the others are what its family makes of a prompt, and what an earlier look left."""
PAST = "past_"
"""Begins the names of inputs that take what an earlier look at the pictures left; all of length 0, the call has the
whole prompt. Programs without scenes have none."""
LEFT = "new_"
"""Begins the names of outputs that a look leaves for such inputs."""


WINDOWS = "windows"
"""Name of the input with the full picture, where replay is fine."""


class TensorSpec(Config):
    """One input or output."""

    name: str = Field(min_length=1, max_length=200)
    """Name in the graph."""
    dtype: DType
    """Element type."""
    shape: tuple[Annotated[int, Field(ge=0, lt=1 << 31)] | Annotated[str, Field(max_length=100)], ...]
    """Sizes, or names of axes whose size is free."""
    meaning: str
    """What it holds, with units."""


class IoSpec(Config):
    """All inputs and outputs of one program."""

    form: Form
    """program: a whole answer in one run; step: one chunk in one run, driven by the host (programs/step_session.py)."""
    inputs: tuple[TensorSpec, ...]
    """In the order of the graph."""
    outputs: tuple[TensorSpec, ...]
    """In the order of the graph."""

    def input(self, name: str) -> TensorSpec:
        """The input of that name (KeyError where the program has none)."""
        return {spec.name: spec for spec in self.inputs}[name]

    def differences(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[str]:
        """What a loaded program (ONNX Runtime's `get_inputs()`, `get_outputs()`) has other than declared; empty when
        equal."""
        return _compare("input", self.inputs, inputs) + _compare("output", self.outputs, outputs)

    def problems(self, feed: Mapping[str, Any]) -> list[str]:
        """What is wrong with the arrays of one call; empty when nothing is."""
        found: list[str] = []
        axes: dict[str, int] = {}
        for spec in self.inputs:
            array = feed.get(spec.name)
            if array is None:
                found.append(f"input {spec.name} is missing")
                continue
            if str(array.dtype) != spec.dtype:
                found.append(f"input {spec.name} is {array.dtype}; it must be {spec.dtype}")
            bound = [
                axes.setdefault(axis, size) if isinstance(axis, str) else axis
                for axis, size in zip(spec.shape, array.shape, strict=False)
            ]
            if len(array.shape) != len(spec.shape) or list(array.shape) != bound:
                found.append(
                    f"input {spec.name} has shape {list(array.shape)}; it must be {list(spec.shape)} with {axes}"
                )
        found += [
            f"input {name} is not one of {[spec.name for spec in self.inputs]}"
            for name in feed
            if name not in {s.name for s in self.inputs}
        ]
        return found


class LookShape(Config):
    """What a look leaves: the keys of the prompt's picture part and whatever else later steps read of it."""

    floats: DType
    """Type of activations."""
    num_layers: int
    """Of the language model."""
    num_key_heads: int
    """Of each layer."""
    head_width: int
    """Of each head."""
    row_width: int
    """E, width of a visual token's row; 0 where nothing is replayed."""
    depth: int = 0
    """R, passes of routed tokens."""
    refined: int = 0
    """A, tokens that a layer routes of the picture part at most; 0 where nothing routes."""


class ProgramShape(Config):
    """The numbers that fix the shapes of a program; a bundle's limits and settings in one place."""

    prompt_inputs: tuple[TensorSpec, ...]
    """What the family makes of a prompt beside its ids (`Geometry.program_inputs`)."""
    vocabulary: int
    """Rows of the language head."""
    width: int
    """D, hidden width."""
    max_latent_steps: int
    """Capacity: latent steps of one answer."""
    max_new_tokens: int
    """Capacity: spoken tokens of one answer."""
    replay_slots: int
    """K; 0 where the model replays nothing."""
    routed_layers: tuple[int, ...]
    """Layers that route, ascending; empty where none does."""
    latent_chunk: int = 1
    """Tokens of a latent step: slots for replayed ones, then the latent."""
    look: LookShape | None = None
    """None: a program without scenes, which reads a whole prompt in every call."""
    window: tuple[int, int] | None = None
    """(M, C), patches of a window and bytes of a patch, where replay is fine."""


def program_spec(shape: ProgramShape) -> IoSpec:
    """Inputs and outputs of the form `program`: one prompt in, one answer out."""
    return IoSpec(form="program", inputs=tuple(_inputs(shape)), outputs=tuple(_outputs(shape)))


def _inputs(shape: ProgramShape) -> list[TensorSpec]:
    return [
        _spec("input_ids", "int64", ("P",), "token ids of the prompt, one image token per visual token"),
        *shape.prompt_inputs,
        *_windows(shape),
        _spec("think", "bool", (), "false masks the latent token (explicit reasoning or a direct answer)"),
        _spec("fixed_latents", "bool", (), "true takes exactly max_latent_steps, false lets the model decide"),
        _spec("max_latent_steps", "int64", (), f"most latent steps, 0 to {shape.max_latent_steps}"),
        _spec("max_new_tokens", "int64", (), f"most spoken tokens, 1 to {shape.max_new_tokens}"),
        *(_spec(f"{PAST}{name}", *kind) for name, kind in _looked(shape, "L", "V0").items()),
    ]


def _looked(shape: ProgramShape, tokens: str, visual: str) -> dict[str, tuple[DType, tuple[int | str, ...], str]]:
    """Name -> (type, shape, meaning) of what a look at so many tokens leaves and an ask takes."""
    look = shape.look
    if look is None:
        return {}
    heads = (look.num_layers, 2, look.num_key_heads, tokens, look.head_width)
    kinds: dict[str, tuple[DType, tuple[int | str, ...], str]] = {
        "keys": (look.floats, heads, "by layer: keys, then values of the prompt's picture part")
    }
    if look.row_width:
        kinds["ids"] = ("int64", (tokens,), "token ids of the prompt's picture part")
        kinds["visual"] = (look.floats, (visual, look.row_width), "rows of its visual tokens, which steps replay")
    if look.refined:
        layers, slots = len(shape.routed_layers), (look.depth, look.refined)
        which = f"layers {list(shape.routed_layers)}"
        sizes = (layers, 2, look.depth, look.num_key_heads, look.refined, look.head_width)
        kinds["refined"] = (look.floats, sizes, f"keys, then values of its routed tokens by depth; {which}")
        kinds["refined_seen"] = ("bool", (layers, *slots), f"which of them there are; {which}")
    return kinds


def _windows(shape: ProgramShape) -> list[TensorSpec]:
    if shape.window is None:
        return []
    said = "by visual token: what it covers in the full picture, cut into patches; one of zeros without a picture"
    return [_spec(WINDOWS, "uint8", (WINDOWS, *shape.window), said)]


def _outputs(shape: ProgramShape) -> list[TensorSpec]:
    steps = shape.max_latent_steps
    why = ", ".join(f"{number} {name}" for number, name in enumerate(HALTING))
    outputs = [
        _spec("token_ids", "int64", (shape.max_new_tokens,), "spoken tokens without the end token, then -1"),
        _spec("num_tokens", "int64", (), "spoken tokens in token_ids"),
        _spec("finished", "bool", (), "true where the model ended the answer, false where max_new_tokens cut it"),
        _spec("latent_steps", "int64", (), "latent steps taken"),
        _spec("spoken_steps", "int64", (), "spoken tokens fed back (the end token never is)"),
        _spec("ar_steps", "int64", (), "sequential forward passes after the prefill: latent_steps + spoken_steps"),
        _spec("halting", "int64", (), f"why thinking stopped: {why}"),
        _spec("prefill_logits", "float32", (shape.vocabulary,), "logits after the prompt (latent token included)"),
    ]
    if steps:
        outputs.append(
            _spec("latent_states", "float32", (steps, shape.width), "hidden state after each latent step, then 0")
        )
    if steps and shape.replay_slots:
        slots = (steps, shape.replay_slots)
        outputs += [
            _spec(
                "replayed",
                "int64",
                slots,
                "per latent step: visual tokens replayed (index over all pictures), ascending, then -1",
            ),
            _spec("replay_weights", "float32", slots, "weight of each replayed token, 0 where the slot is empty"),
        ]
    if shape.routed_layers:
        outputs += _routing_outputs(shape)
    left = {name: kind for name, kind in _looked(shape, "P", "V").items() if name != "ids"}
    return outputs + [_spec(f"{LEFT}{name}", *kind) for name, kind in left.items()]


def _routing_outputs(shape: ProgramShape) -> list[TensorSpec]:
    steps, layers = shape.max_latent_steps, len(shape.routed_layers)
    which = f"layers {list(shape.routed_layers)}"
    outputs = [
        _spec("routed_depths", "int64", (steps + 1, layers), f"extra passes: prompt, then latent steps; {which}"),
        _spec("routed_prompt", "int64", (layers, "P"), f"extra passes of each token of the prompt; {which}"),
    ]
    if steps:
        sizes = (steps, layers, shape.latent_chunk)
        said = f"extra passes of each token of each latent step (replayed ones, then the latent); {which}"
        outputs.append(_spec("routed_latents", "int64", sizes, said))
    return outputs


def _spec(name: str, dtype: DType, shape: tuple[int | str, ...], meaning: str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, meaning=meaning)


ORT_TYPES = {
    "tensor(int64)": "int64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's names of the types that programs have."""


def _compare(kind: str, declared: Sequence[TensorSpec], found: Sequence[Any]) -> list[str]:
    """Names, order, types and shapes; a free axis may carry any name in the file, but must be free."""
    names, real = [spec.name for spec in declared], [arg.name for arg in found]
    if names != real:
        return [f"the {kind}s are {real}; declared are {names}"]
    lines = []
    for spec, arg in zip(declared, found, strict=True):
        if ORT_TYPES.get(arg.type, arg.type) != spec.dtype:
            lines.append(f"{kind} {spec.name} is {arg.type}; declared is {spec.dtype}")
        fixed = [axis if isinstance(axis, int) else None for axis in spec.shape]
        if [size if isinstance(size, int) else None for size in arg.shape] != fixed:
            lines.append(f"{kind} {spec.name} has shape {list(arg.shape)}; declared is {list(spec.shape)}")
    return lines
