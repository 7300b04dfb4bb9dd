"""What a run of an engine needs: shapes, bytes, profile. On real networks where the parser is installed."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lrkit.contract.bundle.io_spec import IoSpec, TensorSpec
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import CapacityError
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.step_graphs import build_steps
from lrkit.export.graph.tower_writer import write_tower
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import read_source
from lrkit.runtime.engines.tensorrt.library import load_library
from lrkit.runtime.engines.tensorrt.plan import IoTensor, Output, choose_profile, differences, plan_outputs
from tests.programs import Runner, build, dialect_of, limits
from tests.tiny import GEOMETRY, prompt, tiny_reasoner

SETTINGS = ReasonerSettings.model_validate(
    {"think": {"max_latent_steps": 3}, "replay": {"num_tokens": 3}, "routing": {"depth": 1, "alpha": 4}}
)
PORTABLE = Target(dialect="standard")


def tensor(name: str, shape: tuple[int | str, ...], dtype: Any = "int64") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, meaning="")


SPEC = IoSpec(
    form="step",
    inputs=(tensor("ids", ("P",)), tensor("places", (3, "P")), tensor("flag", (), "bool")),
    outputs=(tensor("keys", (1, "P", 8), "float16"), tensor("count", ()), tensor("found", ("F", 2), "float32")),
)


def test_outputs_take_their_sizes_from_the_inputs() -> None:
    planned = plan_outputs(SPEC, {"ids": (5,), "places": (3, 5), "flag": ()})
    assert planned == [
        Output("keys", np.float16, (1, 5, 8)), Output("count", np.int64, ()), Output("found", np.float32, None)
    ]  # fmt: skip
    assert [output.num_bytes for output in planned] == [80, 8, None]


def test_an_axis_may_be_a_sum_of_those_of_inputs() -> None:
    """Keys behind a look have L+P tokens, which no input of the prompt's graph has."""
    inputs = (tensor("past", ("L",)), tensor("ids", ("P",)))
    spec = IoSpec(form="step", inputs=inputs, outputs=(tensor("keys", ("L+P", 2)), tensor("scores", ("L+P+K",))))
    shapes = [output.shape for output in plan_outputs(spec, {"past": (0,), "ids": (5,)})]
    assert shapes == [(5, 2), None], "K is no size of an input"


@pytest.mark.parametrize(
    "settings", [SETTINGS, ReasonerSettings(think={"max_latent_steps": 0}, replay={"num_tokens": 0})]
)
def test_planned_outputs_are_what_a_run_gives(settings: ReasonerSettings) -> None:
    """Against ONNX Runtime, which finds the shapes by running."""
    runner = Runner(build(tiny_reasoner(settings), PORTABLE))
    spec, one = runner.program.spec, prompt(1)
    out = runner(one, think=settings.think.max_latent_steps > 0, latents=settings.think.max_latent_steps)
    assert one.patches is not None
    tokens, patches = len(one.ids), len(one.patches)
    sizes = {"P": tokens, "N": patches}
    shapes = {given.name: tuple(sizes.get(axis, axis) for axis in given.shape) for given in spec.inputs}
    planned = plan_outputs(spec, shapes)  # pyright: ignore
    told = [output for output in planned if output.name != "new_visual"]  # whose size only the run tells: none is V
    assert all(output.shape is None for output in planned if output not in told)
    found = {name: array for name, array in out.items() if name != "new_visual"}
    assert {output.name: output.shape for output in told} == {name: array.shape for name, array in found.items()}
    assert {output.name: output.num_bytes for output in told} == {name: array.nbytes for name, array in found.items()}
    assert len(planned) > 6


PROFILES = [{"ids": ((1,), (1,), (1,)), "places": ((3, 1), (3, 1), (3, 1))}, {"ids": ((1,), (20,), (64,))}]


def test_the_profile_whose_usual_size_is_nearest() -> None:
    assert choose_profile(PROFILES, {"ids": (1,), "places": (3, 1)}, "e") == 0
    assert choose_profile(PROFILES, {"ids": (2,), "places": (3, 2)}, "e") == 1
    assert choose_profile(PROFILES, {"ids": (64,)}, "e") == 1


def test_a_shape_outside_every_profile_is_named() -> None:
    with pytest.raises(CapacityError) as caught:
        choose_profile(PROFILES, {"ids": (65,), "places": (3, 65)}, "b/latent.engine")
    assert str(caught.value) == (
        "b/latent.engine: the input ids has shape [65], and the engine was built for [1] to [64]; give a smaller "
        "prompt or picture, or export again with larger limits"
    )
    with pytest.raises(CapacityError, match="ids has shape"):
        choose_profile(PROFILES[1:], {"ids": (4, 4)}, "e")


REAL = (
    [IoTensor("places", "INT64", (3, -1)), IoTensor("ids", "INT64", (-1,)), IoTensor("flag", "BOOL", ())],
    [IoTensor("keys", "HALF", (1, -1, 8)), IoTensor("count", "INT64", ()), IoTensor("found", "FLOAT", (-1, 2))],
)
CHANGES: dict[str, tuple[int, IoTensor | None, str]] = {
    "type": (0, IoTensor("keys", "FLOAT", (1, -1, 8)), "output keys is FLOAT; declared is float16"),
    "size": (0, IoTensor("keys", "HALF", (1, -1, 4)), "output keys has shape [1, -1, 4]; declared is [1, 'P', 8]"),
    "rank": (1, IoTensor("count", "INT64", (1,)), "output count has shape [1]; declared is []"),
    "name": (1, IoTensor("counts", "INT64", ()), "the outputs are ['keys', 'counts', 'found']"),
    "missing": (2, None, "the outputs are ['keys', 'count']"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_engine_other_than_declared(what: str) -> None:
    place, changed, expected = CHANGES[what]
    outputs = list(REAL[1])
    outputs[place : place + 1] = [] if changed is None else [changed]
    found = differences(SPEC, REAL[0], outputs)
    assert len(found) == 1 and expected in found[0]


def test_order_and_unread_inputs_do_not_count() -> None:
    assert differences(SPEC, *REAL) == []
    assert differences(SPEC, REAL[0][:2], REAL[1][::-1]) == [], "a builder leaves out an input that nothing reads"
    assert differences(SPEC, [*REAL[0], IoTensor("more", "BOOL", ())], REAL[1])


def networks() -> list[tuple[str, IoSpec, ir.Model]]:
    """The whole program and the three graphs of the form step."""
    reasoner = tiny_reasoner(SETTINGS)
    program = build(reasoner, PORTABLE)
    source = read_source(reasoner)
    dialect = dialect_of(source, PORTABLE)
    stack = Stack(source, dialect, limits(SETTINGS), GEOMETRY)
    steps = build_steps(stack, write_tower(source, GEOMETRY, dialect))
    return [("program", program.spec, program.model)] + [(name, s.spec, s.model) for name, s in steps.items()]


def test_the_parser_sees_the_declared_inputs_and_outputs() -> None:
    pytest.importorskip("tensorrt_rtx", reason='needs the package tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"')
    library = load_library("tensorrt-rtx")
    seen = 0
    for name, spec, model in networks():
        builder = library.module.Builder(library.log)
        network = builder.create_network(1 << int(library.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = library.module.OnnxParser(network, library.log)
        assert parser.parse(ir.serde.serialize_model(model).SerializeToString()), library.log.take()
        inputs = [_seen(network.get_input(number)) for number in range(network.num_inputs)]
        outputs = [_seen(network.get_output(number)) for number in range(network.num_outputs)]
        assert differences(spec, inputs, outputs) == [], name
        assert differences(spec, inputs, outputs[1:]) != []
        seen += len(inputs) + len(outputs)
    assert seen > 100


def _seen(found: Any) -> IoTensor:
    return IoTensor(found.name, found.dtype.name, tuple(found.shape))
