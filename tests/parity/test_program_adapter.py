"""An adapter that is kept apart: the program's branches against torch with LoRA in place."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from lrkit.contract.bundle.manifest import Dialect
from lrkit.contract.settings import ReasonerSettings
from lrkit.export.graph.program import build_program
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.step_graphs import build_steps, step_spec
from lrkit.export.graph.swaps import open_swaps
from lrkit.export.swapped import adapted_session, write_adapter
from lrkit.export.targets.target import Int4, Target
from lrkit.export.weights.source import read_source
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.engines.programs.step_session import StepSession
from tests.engines import build_engine, needs_builder, profile_for
from tests.programs import Runner, assert_equal, build, dialect_of, limits, tower_of, with_rounded_weights
from tests.tiny import EOS, GEOMETRY, MERGE, prompt, tiny_reasoner

PROMPTS = [prompt(1), prompt(2, grids=()), prompt(3, grids=((1, 4, 4), (1, 2, 6)))]
ROUTED: dict[str, Any] = {"depth": 2, "alpha": 6, "threshold": 0.45, "layers": "all"}
DIALECTS: list[Dialect] = ["ort", "standard"]


def adapted(
    routing: dict[str, Any] | None = None, lora: dict[str, Any] | None = None, **options: Any
) -> LatentReasoner:
    """A reasoner whose adapter changes much, at a rank that no two sides of a matrix share."""
    settings = ReasonerSettings.model_validate(
        {
            "think": {"max_latent_steps": 3}, "replay": {"num_tokens": 3}, "routing": routing or {},
            "lora": lora or {"rank": 3, "alpha": 4.5},
        }
    )  # fmt: skip
    return tiny_reasoner(settings, trainable="lora", **options)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_kept_adapter_equals_torch_in_prompt_steps_passes_and_speech(dialect: Dialect) -> None:
    reasoner = adapted(ROUTED)
    program = build(reasoner, Target(dialect=dialect), keep=True)
    assert reasoner.adapter is not None, "it was merged"
    sizes = {
        "qkv": 3 * 3 * (32 + 64),
        "out": 3 * (32 + 32),
        "gate and up": 3 * (2 * 32 + 2 * 64),
        "down": 3 * (64 + 32),
    }
    assert program.part_bytes["adapter"] == 4 * 4 * sum(sizes.values()), "four layers, float32"
    runner = Runner(program)
    for one in PROMPTS:
        assert_equal(reasoner, runner, one, fixed=True)
    assert_equal(reasoner, runner, PROMPTS[0], think=False)


def test_the_sides_of_every_matrix_make_up_what_merging_adds() -> None:
    """Rows of queries, keys and values are sorted by key head and scaled in a program, and so is what is added."""
    reasoner = adapted()
    apart = read_source(reasoner, keep=True)
    roles = [f"{layer}.{name}" for layer in range(4) for name in ("qkv", "out", "gate", "up", "down")]
    base = {role: apart.weight(role) for role in roles}
    sides = {role: apart.low_rank(role) for role in roles}
    merged = read_source(reasoner)
    for role in roles:
        side = sides[role]
        assert side is not None
        added = side.up @ side.down
        assert np.abs(added).max() > 1e-3
        np.testing.assert_allclose(base[role] + added, merged.weight(role), atol=1e-6, err_msg=role)
        assert merged.low_rank(role) is None
    assert apart.low_rank("embedding") is None and apart.low_rank("head") is None
    assert (apart.adapter, merged.adapter) == ("keep", "merge")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_integers_are_those_of_the_base_alone(dialect: Dialect) -> None:
    """Level 0 against torch with the base's rounded weights put back below LoRA."""
    reasoner = adapted({"depth": 1, "alpha": 4})
    target = Target(precision="int4", dialect=dialect, int4=Int4(block=32, accuracy_level=0))
    program = build(reasoner, target, keep=True)
    session = {"session.disable_quant_qdq": "1"} if dialect == "standard" else {}
    assert_equal(with_rounded_weights(reasoner, target), Runner(program, **session), PROMPTS[0], fixed=True)
    assert program.errors == build(tiny_reasoner(reasoner.settings), target).errors


def test_an_untied_head_and_chunks_of_bytes() -> None:
    """Chunks read the layers' matrices a second time; the branches are stored once, and both read them."""
    reasoner = adapted(tied=False)
    one = PROMPTS[0]
    assert_equal(reasoner, Runner(build(reasoner, fresh_tower=True, keep=True)), one, fixed=True)
    target = Target(precision="int4", int4=Int4(block=32, accuracy_level=0, chunks="w8a8"))
    program = build(reasoner, target, fresh_tower=True, keep=True)
    assert program.part_bytes["adapter"] == build(reasoner, fresh_tower=True, keep=True).part_bytes["adapter"]


@pytest.mark.parametrize("dialect", ["ort", pytest.param("standard", marks=pytest.mark.long)])
def test_the_graphs_that_a_host_drives_have_the_branches_too(dialect: Dialect) -> None:
    reasoner = adapted({"depth": 1, "alpha": 4})
    source = read_source(reasoner, keep=True)
    write = dialect_of(source, Target(dialect=dialect))
    stack = Stack(source, write, limits(reasoner.settings), GEOMETRY)
    steps = build_steps(stack, tower_of(write))
    runner: Any = Runner(build(reasoner, keep=True))
    sessions = {
        name: ort.InferenceSession(ir.serde.serialize_model(step.model).SerializeToString())
        for name, step in steps.items()
    }
    specs = {name: step.spec for name, step in steps.items()}
    runner.session = StepSession(sessions, specs, step_spec(stack), (EOS,))
    for one in PROMPTS:
        assert_equal(reasoner, runner, one, fixed=True)


def test_another_adapter_takes_the_place_of_a_programs_own(tmp_path: Path) -> None:
    """At another rank, with routers, step encodings and a latent row of its own: in prompt, loops and passes."""
    own, other = adapted(ROUTED), changed(adapted(ROUTED, lora={"rank": 5, "alpha": 20.0}))
    source = read_source(own, keep=True)
    source.swapped = True
    write = dialect_of(source, Target())
    program = build_program(Stack(source, write, limits(own.settings), GEOMETRY), (EOS,), tower_of(write))
    swaps = open_swaps(program.model)
    assert len(swaps) == 4 * (2 + 2 + 3 + 2) + 4 * 3 + 1, "sides of four layers, routers, the latent token's row"
    runner: Any = Runner(program)
    session = runner.session
    for reasoner in (own, other, own):
        write_adapter(tmp_path / "other.onnx_adapter", swaps, read_source(other, keep=True))
        runner.session = (
            adapted_session(session, tmp_path / "other.onnx_adapter", swaps) if reasoner is other else session
        )
        for one in PROMPTS[:2]:
            assert_equal(reasoner, runner, one)
            assert_equal(reasoner, runner, one, fixed=True)


def changed(reasoner: LatentReasoner) -> LatentReasoner:
    """With another router, other step encodings and another latent row."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in reasoner.extra_parameters().values():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return reasoner


@needs_builder
@pytest.mark.long
@pytest.mark.parametrize("precision", ["int4", pytest.param("fp16", marks=pytest.mark.slow)])
def test_the_builder_makes_an_engine_with_the_branches(precision: str, tmp_path: Any) -> None:
    reasoner = adapted({"depth": 1, "alpha": 4})
    target = Target(dialect="standard", precision=precision, activations="fp16", int4=Int4(block=32))
    program, bounds = build(reasoner, target, keep=True), limits(reasoner.settings)
    assert build_engine(program.model, tmp_path, profile_for(program.spec, program.spec, bounds, MERGE))


def test_ranks_of_different_matrices_are_free_each_for_itself() -> None:
    """One name for all told ONNX Runtime that queries, keys and values together, of three ranks, take the memory of
    one: a program as wide as the shipped one then failed in its prompt, while that of the tests ran."""
    source = read_source(adapted(), keep=True)
    source.swapped = True
    write = dialect_of(source, Target())
    model = build_program(Stack(source, write, limits(source.settings), GEOMETRY), (EOS,), tower_of(write)).model
    swaps = set(open_swaps(model))
    free = [
        str(size)
        for one in model.graph.inputs
        if one.name in swaps
        for size in one.shape or ()
        if not isinstance(size, int)
    ]
    assert len(free) == len(set(free)) == 4 * (2 + 2 + 3 + 2)
