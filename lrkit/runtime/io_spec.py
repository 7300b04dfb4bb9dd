"""What goes into a program and what comes out: names, types, axes and meaning, declared once.

Place in the pipeline: lrkit/export builds the graph from it and checks the finished file against it; the runtime feeds and
reads a program by it; a bundle carries it, so that a program can be driven from any language without lrkit. Torch-free.

A shape holds numbers and axis names; an axis name stands for the same number wherever it appears in one call.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lrkit.config import Config

DType = Literal["int64", "float32", "bool"]
Form = Literal["program", "step"]

HALTING = ("off", "decided", "limit", "fixed")
"""Meaning of the output `halting`: latents were masked; the model stopped thinking; it still wanted to; the number was given."""

EMPTY = -1
"""What fills the unused part of `token_ids` and `replayed`."""


class TensorSpec(Config):
    """One input or output."""

    name: str
    """Name in the graph."""
    dtype: DType
    """Element type."""
    shape: tuple[int | str, ...]
    """Sizes, or names of axes whose size is free."""
    meaning: str
    """What it holds, with units."""


class IoSpec(Config):
    """All inputs and outputs of one program."""

    form: Form
    """program: a whole answer in one run; step: one chunk in one run, driven by the host."""
    inputs: tuple[TensorSpec, ...]
    """In the order of the graph."""
    outputs: tuple[TensorSpec, ...]
    """In the order of the graph."""

    def input(self, name: str) -> TensorSpec:
        """The input of that name (KeyError where the program has none)."""
        return {spec.name: spec for spec in self.inputs}[name]

    def differences(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[str]:
        """What a loaded program (ONNX Runtime's `get_inputs()`, `get_outputs()`) has other than declared; empty when equal."""
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
            bound = [axes.setdefault(axis, size) if isinstance(axis, str) else axis for axis, size in zip(spec.shape, array.shape, strict=False)]
            if len(array.shape) != len(spec.shape) or list(array.shape) != bound:
                found.append(f"input {spec.name} has shape {list(array.shape)}; it must be {list(spec.shape)} with {axes}")
        found += [f"input {name} is not one of {[spec.name for spec in self.inputs]}" for name in feed if name not in {s.name for s in self.inputs}]
        return found


class ProgramShape(Config):
    """The numbers that fix the shapes of a program; a bundle's limits and settings in one place."""

    patch_values: int
    """Values of one patch: channels * frames * patch * patch."""
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


def program_spec(shape: ProgramShape) -> IoSpec:
    """Inputs and outputs of the form `program`: one prompt in, one answer out."""
    inputs = [
        TensorSpec(name="input_ids", dtype="int64", shape=("P",), meaning="token ids of the prompt, one image token per visual token"),
        TensorSpec(name="position_ids", dtype="int64", shape=(3, "P"), meaning="M-RoPE positions (temporal, height, width) of the prompt"),
        TensorSpec(name="pixel_values", dtype="float32", shape=("N", shape.patch_values), meaning="patches of all pictures, one after the other; without a picture: one merged square of zeros"),
        TensorSpec(name="patch_positions", dtype="int64", shape=("N", 2), meaning="row and column of each patch in its picture"),
        TensorSpec(name="patch_picture", dtype="int64", shape=("N",), meaning="number of the picture (and frame) a patch belongs to: patches only see their own"),
        TensorSpec(name="think", dtype="bool", shape=(), meaning="false masks the latent token from the start (explicit reasoning or a direct answer)"),
        TensorSpec(name="fixed_latents", dtype="bool", shape=(), meaning="true takes exactly max_latent_steps, false lets the model decide"),
        TensorSpec(name="max_latent_steps", dtype="int64", shape=(), meaning=f"most latent steps, 0 to {shape.max_latent_steps}"),
        TensorSpec(name="max_new_tokens", dtype="int64", shape=(), meaning=f"most spoken tokens, 1 to {shape.max_new_tokens}"),
    ]  # fmt: skip
    steps = shape.max_latent_steps
    outputs = [
        TensorSpec(name="token_ids", dtype="int64", shape=(shape.max_new_tokens,), meaning="spoken tokens without the end token, then -1"),
        TensorSpec(name="num_tokens", dtype="int64", shape=(), meaning="spoken tokens in token_ids"),
        TensorSpec(name="finished", dtype="bool", shape=(), meaning="true where the model ended the answer, false where max_new_tokens cut it"),
        TensorSpec(name="latent_steps", dtype="int64", shape=(), meaning="latent steps taken"),
        TensorSpec(name="spoken_steps", dtype="int64", shape=(), meaning="spoken tokens fed back (the end token never is)"),
        TensorSpec(name="ar_steps", dtype="int64", shape=(), meaning="sequential forward passes after the prefill: latent_steps + spoken_steps"),
        TensorSpec(name="halting", dtype="int64", shape=(), meaning="why thinking stopped: " + ", ".join(f"{i} {name}" for i, name in enumerate(HALTING))),
        TensorSpec(name="prefill_logits", dtype="float32", shape=(shape.vocabulary,), meaning="logits after the prompt (latent token included)"),
    ]  # fmt: skip
    if steps:
        outputs.append(
            TensorSpec(name="latent_states", dtype="float32", shape=(steps, shape.width), meaning="hidden state after each latent step, then 0")
        )  # fmt: skip
    if steps and shape.replay_slots:
        slots = (steps, shape.replay_slots)
        outputs += [
            TensorSpec(name="replayed", dtype="int64", shape=slots, meaning="per latent step: visual tokens replayed (index over all pictures, ascending), then -1"),
            TensorSpec(name="replay_weights", dtype="float32", shape=slots, meaning="weight of each replayed token, 0 where the slot is empty"),
        ]  # fmt: skip
    if shape.routed_layers:
        outputs.append(
            TensorSpec(name="routed_depths", dtype="int64", shape=(steps + 1, len(shape.routed_layers)), meaning="extra passes executed, summed over routed tokens: prompt, then each latent step; columns are the layers " + str(list(shape.routed_layers)))
        )  # fmt: skip
    return IoSpec(form="program", inputs=tuple(inputs), outputs=tuple(outputs))


_ORT_TYPES = {"tensor(int64)": "int64", "tensor(float)": "float32", "tensor(bool)": "bool"}


def _compare(kind: str, declared: Sequence[TensorSpec], found: Sequence[Any]) -> list[str]:
    """Names, order, types and shapes; a free axis may carry any name in the file, but must be free."""
    names, real = [spec.name for spec in declared], [arg.name for arg in found]
    if names != real:
        return [f"the {kind}s are {real}; declared are {names}"]
    lines = []
    for spec, arg in zip(declared, found, strict=True):
        if _ORT_TYPES.get(arg.type, arg.type) != spec.dtype:
            lines.append(f"{kind} {spec.name} is {arg.type}; declared is {spec.dtype}")
        fixed = [axis if isinstance(axis, int) else None for axis in spec.shape]
        if [size if isinstance(size, int) else None for size in arg.shape] != fixed:
            lines.append(f"{kind} {spec.name} has shape {list(arg.shape)}; declared is {list(spec.shape)}")
    return lines
