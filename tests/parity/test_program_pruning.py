"""Programs of reasoners that prune visual tokens: both dialects and both forms against torch, which
test_reasoner_reference.py compares with a full recompute.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import ExportError
from lrkit.export.graph.program import build_program
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.step_graphs import build_steps, step_spec
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import read_source
from lrkit.runtime.engines.programs.step_session import StepSession
from tests.programs import Runner, assert_equal, build, dialect_of, limits, tower_of
from tests.tiny import EOS, GEOMETRY, prompt, tiny_reasoner

PROMPTS = (
    prompt(3, grids=((1, 4, 4), (1, 2, 6))),
    prompt(6, grids=((1, 2, 2),), length=2),
    prompt(5, grids=(), length=9),
    prompt(7, grids=((1, 6, 8),), length=3),
)
"""Two pictures, one of a single token, none, a large one."""
CASES: dict[str, dict[str, Any]] = {
    "no replay": {"prune": {"after_layer": 1, "keep": 0.5}, "replay": {"num_tokens": 0}},
    "one": {"prune": {"after_layer": 0, "keep": 0.25}, "replay": {"num_tokens": 1}},
    "exhausted": {"prune": {"after_layer": 2, "keep": 0.4}, "replay": {"num_tokens": 5, "weighting": "softmax"}},
    "mixed": {"prune": {"after_layer": 1, "keep": 0.001}, "replay": {"num_tokens": 3, "formation": "soft_mix"}},
    "routed": {
        "prune": {"after_layer": 0, "keep": 0.3},
        "replay": {"num_tokens": 2, "positions": "shared"},
        "routing": {"depth": 2, "alpha": 4, "layers": "all", "threshold": 0.4, "gate": "softmax"},
    },
}


QUICK = ("exhausted", "routed")
"""Cases of the default run."""


@pytest.mark.parametrize("dialect", ["ort", pytest.param("standard", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in CASES if name not in QUICK)]
)
def test_programs_prune_as_torch_does(name, dialect):
    settings = ReasonerSettings.model_validate({"think": {"max_latent_steps": 3}, **CASES[name]})
    reasoner = tiny_reasoner(settings)
    runner = Runner(build(reasoner, Target(dialect=dialect)))
    for one in PROMPTS:
        assert_equal(reasoner, runner, one, fixed=True)
    assert_equal(reasoner, runner, PROMPTS[0], think=False)


@pytest.mark.parametrize(
    "name", ["routed", *(pytest.param(one, marks=pytest.mark.long) for one in ("no replay", "exhausted"))]
)
def test_the_graphs_that_a_host_drives_prune_too(name):
    settings = ReasonerSettings.model_validate({"think": {"max_latent_steps": 3}, **CASES[name]})
    reasoner = tiny_reasoner(settings)
    source = read_source(reasoner)
    dialect = dialect_of(source, Target(dialect="standard"))
    stack = Stack(source, dialect, limits(settings), GEOMETRY)
    runner = Runner(build(reasoner))
    steps = build_steps(stack, tower_of(dialect))
    sessions = {
        step: ort.InferenceSession(ir.serde.serialize_model(made.model).SerializeToString(), _quiet())
        for step, made in steps.items()
    }
    specs = {step: made.spec for step, made in steps.items()}
    runner.session = StepSession(sessions, specs, step_spec(stack), (EOS,))
    for one in PROMPTS:
        assert_equal(reasoner, runner, one, fixed=True)
    late = {one.name: one.shape for one in specs["prompt"].outputs}
    first = (settings.prune.after_layer or 0) + 1
    assert [late[f"prompt_key{i}"][2] for i in range(4)] == ["P"] * first + ["Q"] * (4 - first)


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return options


def test_a_checkpoint_without_latent_steps_is_pruned_as_well():
    settings = ReasonerSettings.model_validate({"think": {"max_latent_steps": 0}, **CASES["one"]})
    reasoner = tiny_reasoner(settings)
    for dialect in ("ort", "standard"):
        runner = Runner(build(reasoner, Target(dialect=dialect)))
        for one in PROMPTS:
            assert_equal(reasoner, runner, one, latents=0)


def test_what_prunes_nothing_is_the_same_program_byte_for_byte():
    """And a program that prunes has no inputs of an earlier look, even where the target asks for scenes."""

    def written(**prune: Any) -> bytes:
        settings = ReasonerSettings.model_validate({"think": {"max_latent_steps": 2}, "prune": prune})
        model = build(tiny_reasoner(settings), Target()).model
        model.metadata_props.clear()
        return ir.serde.serialize_model(model).SerializeToString()

    assert written() == written(after_layer=2, keep=1.0) == written(keep=0.1)
    assert b"past_keys" in written() and b"past_keys" not in written(after_layer=2, keep=0.5)


def test_a_family_whose_blank_picture_has_many_tokens_is_refused_where_sizes_come_from_shapes():
    """Its text would be counted as visual tokens of a picture that is not there."""
    reasoner = tiny_reasoner(ReasonerSettings.model_validate({"think": {"max_latent_steps": 1}, **CASES["one"]}))
    source = read_source(reasoner)

    class Blank:
        def __getattr__(self, name: str) -> Any:
            return getattr(GEOMETRY, name)

        def program_feed(self, *_: Any) -> dict[str, np.ndarray]:
            return {"pixel_values": np.zeros((9 * GEOMETRY.patches_per_token, GEOMETRY.patch_bytes), np.uint8)}

    dialect = dialect_of(source, Target(dialect="standard"))
    stack = Stack(source, dialect, limits(reasoner.settings), Blank())  # pyright: ignore
    with pytest.raises(ExportError, match="prompts without a picture are given a whole one") as refused:
        build_program(stack, (EOS,), tower_of(dialect))
    assert "\n" not in str(refused.value)
