"""Fine replay in programs: a latent step reads the windows that it looks at, by the tower, inside the loop."""

import onnx_ir as ir
import onnxruntime as ort
import pytest

from lrkit.contract.settings import PruneSettings, ReasonerSettings
from lrkit.export.graph import tower_windows
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.step_graphs import build_steps, step_spec
from lrkit.export.graph.tower_windows import traced_windows
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import read_source
from lrkit.runtime.engines.programs.step_session import StepSession
from tests.engines import build_engine, needs_builder, profile_for
from tests.programs import Runner, assert_equal, build, dialect_of, limits, tower_of, with_rounded_weights
from tests.scenes import assert_parts_equal_whole
from tests.tiny import EOS, GEOMETRY, MERGE, prompt, tiny_reasoner, with_windows

PROMPTS = {
    "one image": prompt(1),
    "no image": prompt(2, grids=()),
    "two images": prompt(3, grids=((1, 4, 4), (1, 2, 6))),
}
REPLAYS = {
    "one window of 4": {"num_tokens": 1},
    "3 windows of 4, the last run out": {"num_tokens": 3},
    "2 windows of 9": {"num_tokens": 2, "zoom": 3, "weighting": "softmax"},
    "soft mix": {"num_tokens": 2, "formation": "soft_mix"},
    "shared positions": {"num_tokens": 2, "positions": "shared"},
}
ROUTING = {"depth": 2, "alpha": 6, "threshold": 0.45, "layers": "all"}


TRACES: dict = {}


@pytest.fixture(autouse=True)
def traced_once(monkeypatch):
    """All reasoners here have one tower: it is traced once for each zoom, type and dialect."""

    def traced(inner, geometry, fp16):
        key = geometry.zoom, fp16, inner.rotate
        if key not in TRACES:
            TRACES[key] = traced_windows(inner, geometry, fp16)
        return TRACES[key]

    monkeypatch.setattr(tower_windows, "traced_windows", traced)


def settings(replay: dict, routing: dict | None = None, **think) -> ReasonerSettings:
    return ReasonerSettings(
        think={"max_latent_steps": 3, **think}, replay={"source": "fine", **replay}, routing=routing or {},
        distill={"weight": 0.0},
    )  # fmt: skip


def asked(chosen: ReasonerSettings) -> dict:
    return {name: with_windows(one, chosen.replay.zoom) for name, one in PROMPTS.items()}


USUAL = {("ort", "one window of 4"), ("ort", "soft mix"), ("standard", "3 windows of 4, the last run out")}
"""What the default tests try."""


@pytest.mark.parametrize(
    ("dialect", "name"),
    [
        pytest.param(dialect, name, marks=() if (dialect, name) in USUAL else pytest.mark.long)
        for dialect in ("ort", "standard")
        for name in REPLAYS
    ],
)
def test_replay(dialect, name):
    chosen = settings(REPLAYS[name])
    reasoner = tiny_reasoner(chosen)
    runner = Runner(build(reasoner, Target(dialect=dialect)))
    for one in asked(chosen).values():
        assert_equal(reasoner, runner, one, fixed=True)


@pytest.mark.parametrize("dialect", ["ort", pytest.param("standard", marks=pytest.mark.long)])
def test_routing(dialect):
    chosen = settings({"num_tokens": 2}, ROUTING)
    reasoner = tiny_reasoner(chosen)
    runner = Runner(build(reasoner, Target(dialect=dialect)))
    for one in asked(chosen).values():
        assert_equal(reasoner, runner, one, fixed=True)


@pytest.mark.parametrize("dialect", ["ort", pytest.param("standard", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "target",
    ["fp32", pytest.param("int4", marks=pytest.mark.long)],
)
def test_a_question_behind_a_look(dialect, target):
    """Windows are no part of what a look leaves: each question is given its own."""
    chosen = settings(REPLAYS["3 windows of 4, the last run out"], ROUTING)
    values = {"int4": {"block": 32}} if target == "int4" else {}
    made = Target(dialect=dialect, precision=target, **values)
    # ONNX Runtime's own integers miss weights that two graphs of the dialect standard share.
    session = {"session.disable_quant_qdq": "1"} if dialect == "standard" else {}
    runner = Runner(build(tiny_reasoner(chosen), made), **session)
    for one in asked(chosen).values():
        if one.grids:
            assert_parts_equal_whole(runner, one, fixed=True)


@pytest.mark.parametrize("dialect", [pytest.param("ort", marks=pytest.mark.long), "standard"])
def test_pruned_tokens_come_back_as_windows(dialect):
    chosen = settings(REPLAYS["3 windows of 4, the last run out"])
    chosen = chosen.model_copy(update={"prune": PruneSettings(after_layer=0, keep=0.2)})
    reasoner = tiny_reasoner(chosen)
    runner = Runner(build(reasoner, Target(dialect=dialect)))
    for one in asked(chosen).values():
        assert_equal(reasoner, runner, one, fixed=True)


@pytest.mark.parametrize("dialect", [pytest.param("ort", marks=pytest.mark.long), "standard"])
def test_the_graphs_that_a_host_drives(dialect):
    """The graph `think` has the tower and is given the windows in every step; the rows of the prompt are not kept."""
    chosen = settings({"num_tokens": 3})
    reasoner = tiny_reasoner(chosen)
    source = read_source(reasoner)
    write = dialect_of(source, Target(dialect=dialect))
    stack = Stack(source, write, limits(chosen), GEOMETRY.with_zoom(2))
    steps = build_steps(stack, tower_of(write))
    assert [name for name, step in steps.items() if "windows" in [one.name for one in step.spec.inputs]] == ["think"]
    assert "new_prompt_embeds" not in [one.name for one in steps["prompt"].spec.outputs]
    runner = Runner(build(reasoner, Target(dialect=dialect)))
    sessions = {
        name: ort.InferenceSession(ir.serde.serialize_model(step.model).SerializeToString())
        for name, step in steps.items()
    }
    specs = {name: step.spec for name, step in steps.items()}
    runner.session = StepSession(sessions, specs, step_spec(stack), (EOS,))
    for one in asked(chosen).values():
        assert_equal(reasoner, runner, one, fixed=True)


def test_integers_of_the_tower_are_read_in_the_prompt_and_in_the_loop():
    """One copy of each matrix: the loop's tower is the prompt's."""
    chosen = settings({"num_tokens": 3})
    target = Target(precision="int4", int4={"block": 32, "vision": "int4", "accuracy_level": 0})
    reasoner = tiny_reasoner(chosen)
    program, plain = (
        build(reasoner, target),
        build(tiny_reasoner(settings({"num_tokens": 3, "source": "prompt"})), target),
    )
    grown = program.part_bytes["vision"] - plain.part_bytes["vision"]
    assert 0 <= grown < 0.2 * plain.part_bytes["vision"], "places of a window alone are new"
    rounded = with_rounded_weights(reasoner, target)
    for one in asked(chosen).values():
        assert_equal(rounded, Runner(program), one, fixed=True)


def test_windows_are_read_inside_the_loop_and_behind_no_branch():
    """ONNX Runtime packs the weights of a loop's body, but not those of a branch in it, and is then four times slower.
    Without a picture the tower reads no windows."""
    program = build(tiny_reasoner(settings({"num_tokens": 2})))
    (loop, *_) = [node for node in program.model.graph if node.op_type == "Loop"]
    kinds = [node.op_type for node in loop.attributes["body"].as_graph()]
    assert kinds.count("LayerNormalization") == 5 and "If" not in kinds


@needs_builder
@pytest.mark.long
@pytest.mark.parametrize(("precision", "vision"), [("fp16", "float"), ("int4", "float"), ("int4", "int4")])
def test_the_builder_makes_an_engine(precision, vision, tmp_path):
    """TensorRT-RTX reads no bytes in a Gather, and one INT4 constant not in the prompt and in the loop."""
    chosen = settings({"num_tokens": 3})
    values = {"int4": {"block": 32, "vision": vision}} if precision == "int4" else {}
    target = Target(dialect="standard", precision=precision, activations="fp16", **values)
    program = build(tiny_reasoner(chosen), target, max_patches=64)
    profile = profile_for(program.spec, program.spec, limits(chosen, max_patches=64), MERGE)
    assert profile["windows"][2] == (16, 16, GEOMETRY.patch_bytes)
    assert build_engine(program.model, tmp_path, profile).entry["num_layers"] > 1500
