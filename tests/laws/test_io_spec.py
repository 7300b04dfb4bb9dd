"""The declared inputs and outputs of a program of any size are consistent and are told from others."""

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lrkit.config import load_config
from lrkit.contract.bundle.io_spec import IoSpec, ProgramShape, TensorSpec, program_spec
from lrkit.families.qwen2_vl.geometry import ImageGeometry


def of_patches(side: int) -> tuple[TensorSpec, ...]:
    return ImageGeometry(patch_size=side).program_inputs


shapes = st.builds(
    ProgramShape,
    prompt_inputs=st.integers(1, 512).map(of_patches),
    vocabulary=st.integers(1, 10**6), width=st.integers(1, 8192),
    max_latent_steps=st.integers(0, 40), max_new_tokens=st.integers(1, 4096), replay_slots=st.integers(0, 64),
    routed_layers=st.sets(st.integers(0, 60), max_size=6).map(lambda layers: tuple(sorted(layers))),
    latent_chunk=st.integers(1, 65),
)  # fmt: skip
small = st.builds(
    ProgramShape,
    prompt_inputs=st.integers(1, 2).map(of_patches), vocabulary=st.integers(1, 9), width=st.integers(1, 9),
    max_latent_steps=st.integers(0, 4), max_new_tokens=st.integers(1, 5), replay_slots=st.integers(0, 3),
    routed_layers=st.just((1, 3)), latent_chunk=st.integers(1, 4),
)  # fmt: skip


@given(shapes)
def test_names_are_unique_and_sizes_follow_the_shape(shape: ProgramShape) -> None:
    spec = program_spec(shape)
    names = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
    assert len(set(names)) == len(names)
    out = {tensor.name: tensor for tensor in spec.outputs}
    thinks, replays = shape.max_latent_steps > 0, shape.max_latent_steps > 0 and shape.replay_slots > 0
    assert ("latent_states" in out, "replayed" in out) == (thinks, replays)
    assert ("routed_depths" in out) == bool(shape.routed_layers)
    assert out["token_ids"].shape == (shape.max_new_tokens,) and out["prefill_logits"].shape == (shape.vocabulary,)
    if replays:
        assert out["replayed"].shape == out["replay_weights"].shape == (shape.max_latent_steps, shape.replay_slots)
    axes = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    assert {axis for tensor in spec.outputs for axis in tensor.shape if isinstance(axis, str)} <= axes


@given(shapes)
def test_a_spec_reads_back_equal(shape: ProgramShape) -> None:
    spec = program_spec(shape)
    assert IoSpec.model_validate_json(spec.model_dump_json()) == spec
    assert load_config(IoSpec, spec.model_dump(mode="json")) == spec


def fed(spec: IoSpec, prompt: int, patches: int) -> dict[str, np.ndarray]:
    sizes = {"P": prompt, "N": patches}
    return {
        tensor.name: np.zeros([axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape], tensor.dtype)
        for tensor in spec.inputs
    }


@given(small, st.integers(1, 9), st.integers(0, 9), st.data())
def test_a_feed_of_the_declared_sizes_is_taken_and_every_other_is_not(
    shape: ProgramShape, prompt: int, patches: int, data: st.DataObject
) -> None:
    spec = program_spec(shape)
    feed = fed(spec, prompt, patches)
    assert spec.problems(feed) == []
    name = data.draw(st.sampled_from(sorted(feed)))
    array = feed[name]
    others = [
        {key: value for key, value in feed.items() if key != name},
        feed | {"of_no_program": array},
        feed | {name: array.astype(np.float64)},
        feed | {name: array[None]},
    ]
    if "P" in spec.input(name).shape and name != "input_ids":
        others.append(feed | {name: np.concatenate([array, array[..., :1]], axis=-1)})
    for other in others:
        assert len(spec.problems(other)) >= 1


@dataclass
class Arg:
    """What ONNX Runtime tells of an input or output."""

    name: str
    type: str
    shape: list[int | str]


TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)", "float16": "tensor(float16)", "uint8": "tensor(uint8)",
         "bool": "tensor(bool)"}  # fmt: skip


def args(tensors: tuple[TensorSpec, ...]) -> list[Arg]:
    return [Arg(tensor.name, TYPES[tensor.dtype], list(tensor.shape)) for tensor in tensors]


@given(shapes, st.data())
def test_a_program_as_declared_has_no_difference_and_any_other_has(shape: ProgramShape, data: st.DataObject) -> None:
    spec = program_spec(shape)
    assert spec.differences(args(spec.inputs), args(spec.outputs)) == []
    outputs = args(spec.outputs)
    at = data.draw(st.integers(0, len(outputs) - 1))
    kind = data.draw(st.sampled_from(["name", "type", "rank", "missing"]))
    if kind == "missing":
        del outputs[at]
    elif kind == "name":
        outputs[at].name += "_"
    elif kind == "type":
        outputs[at].type = "tensor(double)"
    else:
        outputs[at].shape = [*outputs[at].shape, 1]
    assert spec.differences(args(spec.inputs), outputs) != []
