"""The portable dialect in NVIDIA's own parser and builder, which need no GPU. Skipped without tensorrt_rtx.

What is built here was never run: no GPU that TensorRT-RTX builds for was at hand.
"""

import json
from pathlib import Path

import onnx_ir as ir
import pytest

from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.shapes import load_shape
from lrkit.errors import ExportError
from lrkit.export.graph.dialects import writer_for
from lrkit.export.graph.program import Program, Tower, build_program
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.step_graphs import build_steps
from lrkit.export.graph.tower_writer import write_tower
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import read_source
from lrkit.model.build import build_reasoner
from lrkit.profile.measure.cases import ModelChoice
from lrkit.profile.measure.shape_model import open_shape
from tests.engines import BuiltEngine, build_engine, needs_builder, profile_for
from tests.programs import build, limits
from tests.tiny import LATENT, MERGE, tiny_backbone, tiny_reasoner

pytestmark = needs_builder

SETTINGS = {
    "no routing, no replay": {"replay": {"num_tokens": 0}},
    "one pass": {"replay": {"num_tokens": 3}, "routing": {"depth": 1, "alpha": 4}},
    "depth loop": {"replay": {"num_tokens": 3}, "routing": {"depth": 3, "alpha": 4, "threshold": 0.4}},
    "depth loop, 32 replayed": {
        "replay": {"num_tokens": 32}, "routing": {"depth": 3, "alpha": 4, "threshold": 0.4},
    },
}  # fmt: skip
PATCHES = 160
"""Room for 40 visual tokens, so that 32 can be replayed."""


def settings_of(name: str, **think: object) -> ReasonerSettings:
    return ReasonerSettings.model_validate({"think": {"max_latent_steps": 3, **think}, **SETTINGS[name]})


def target_of(precision: str, **changes: object) -> Target:
    return Target(dialect="standard", precision=precision, activations="fp16", int4={"block": 32}, **changes)


def tiny_program(name: str, target: Target, **think: object) -> Program:
    return build(tiny_reasoner(settings_of(name, **think)), target, max_patches=PATCHES)


def engine_of(name: str, precision: str, folder) -> BuiltEngine:
    program, bounds = tiny_program(name, target_of(precision)), limits(settings_of(name), max_patches=PATCHES)
    return build_engine(program.model, folder, profile_for(program.spec, program.spec, bounds, MERGE))


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("one pass", "int4"),
        ("depth loop, 32 replayed", "fp16"),
        *(
            pytest.param(name, precision, marks=pytest.mark.slow)
            for name, precision in (
                ("no routing, no replay", "fp16"),
                ("no routing, no replay", "int4"),
                ("one pass", "fp16"),
                ("depth loop", "int4"),
                ("depth loop", "fp16"),
                ("depth loop", "fp32"),
                ("depth loop, 32 replayed", "int4"),
            )
        ),
    ],
)
def test_the_builder_makes_an_engine(name, precision, tmp_path):
    """R = 0, 1 and 3 with a threshold, K = 0, 3 and 32, latents by the model's decision: every loop in one engine."""
    built = engine_of(name, precision, tmp_path)
    parts = built.entry["layers_by_part"]
    assert set(parts) == {"vision", "prompt", "think", "speak", "other"}
    assert sum(parts.values()) == built.entry["num_layers"] > 1500
    with built.path.open("rb") as stream:
        assert stream.read(4) == b"vtrt", "NVIDIA's mark of an engine"


def test_adaptive_and_fixed_latents_are_one_program():
    """Who decides on the number of latents is an input of each question: one engine serves both."""
    graphs = [
        ir.serde.serialize_model(tiny_program("one pass", target_of("fp16"), halting=halting).model).graph
        for halting in ("adaptive", "fixed")
    ]
    assert graphs[0].SerializeToString() == graphs[1].SerializeToString()
    assert "fixed_latents" in [given.name for given in graphs[0].input]


def test_refusals_name_part_layer_node_and_operator(tmp_path):
    """An operator without an importer, deep in the latent loop: not the loop is named but the node."""
    program = tiny_program("no routing, no replay", target_of("fp16"))
    nodes = {node.name: node for node in program.model.graph.all_nodes()}
    nodes["think/layer2/Sigmoid"].op_type = "Multinomial"
    profile = profile_for(program.spec, program.spec, limits(settings_of("one pass")), MERGE)
    with pytest.raises(ExportError, match="Multinomial") as refused:
        build_engine(program.model, tmp_path, profile)
    said = str(refused.value)
    assert "the node think/layer2/Sigmoid (operator Multinomial, the latent step, layer 2)" in said
    assert said.startswith("tensorrt_rtx ") and "\n" not in said


def test_a_build_that_fails_says_so_in_the_builders_words(tmp_path):
    """Turing has no int4: that is found by the builder, not by the parser."""
    program = tiny_program("no routing, no replay", target_of("int4"))
    profile = profile_for(program.spec, program.spec, limits(settings_of("one pass")), MERGE)
    with pytest.raises(ExportError, match=r"cannot build model.onnx: .*sm75.*int4") as refused:
        build_engine(program.model, tmp_path, profile, archs=("sm75",))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("*.engine*"))


def slice_of_2b(folder: Path) -> tuple[Stack, Tower, Limits]:
    """Two layers of Qwen2-VL-2B's language model with a small vocabulary and tower, and random weights."""
    shape = load_shape("qwen2-vl-2b").model_dump()
    tower = {**shape["config"]["vision_config"], "depth": 1, "embed_dim": 64, "num_heads": 2}
    shape["config"] |= {"num_hidden_layers": 2, "vocab_size": 512, "image_token_id": 500, "vision_config": tower}
    file = folder / "slice.json"
    file.write_text(json.dumps({**shape, "picture": (56, 56), "tokens": {}, "prompt": {}}))
    model = open_shape(str(file), settings_of("depth loop"), ModelChoice(path=str(file), dtype="float32"))
    source = read_source(model.reasoner.engine.reasoner)
    target = Target(dialect="standard", precision="int4", activations="fp16")
    dialect = writer_for(target, source.weight, source.dimensions.recipe.norm)
    bounds = Limits(max_prompt_tokens=256, max_patches=64, max_images=1, max_latent_steps=3, max_new_tokens=16)
    geometry = model.reasoner.processor.geometry
    return Stack(source, dialect, bounds, geometry), write_tower(source, geometry, dialect), bounds


@pytest.mark.slow
def test_an_engine_with_three_loops_stores_its_weights_once(tmp_path):
    """int4, two layers of the 2B shape. The prompt, the latent loop, its depth loop and the speech loop all use the
    layers' weights; the engine of the prompt's graph alone uses them once."""
    stack, tower, bounds = slice_of_2b(tmp_path)
    program = build_program(stack, [1], tower=tower)
    weights = sum(program.part_bytes.values())
    steps = build_steps(stack, tower)
    sizes = {}
    for name, model, spec in (
        ("program", program.model, program.spec),
        ("prompt", steps["prompt"].model, steps["prompt"].spec),
    ):
        (tmp_path / name).mkdir()
        profile = profile_for(spec, program.spec, bounds, stack.geometry.merge_size)
        sizes[name] = build_engine(model, tmp_path / name, profile).num_bytes
    assert weights > 48e6
    # Beside the weights an engine holds code for each chunk, which does not grow with them.
    assert sizes["prompt"] > weights
    assert sizes["program"] - sizes["prompt"] < 0.5 * weights, "a second copy of the weights"
    assert sizes["program"] < 2 * weights


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no routing, no replay", "one pass", "depth loop"])
def test_an_engine_grows_by_its_weights_alone(name, tmp_path):
    """Twice the width is four times the weights: the engine grows by each byte of them once, whatever loops it has."""
    weights, engines = [], []
    for width in (512, 1024):
        reasoner = build_reasoner(tiny_backbone(layers=2, width=width), settings_of(name), LATENT, trainable="none")
        target = Target(dialect="standard", precision="int4", activations="fp16")
        program = build(reasoner, target, fresh_tower=True, max_patches=PATCHES)
        profile = profile_for(program.spec, program.spec, limits(settings_of(name), max_patches=PATCHES), MERGE)
        (tmp_path / str(width)).mkdir()
        engines.append(build_engine(program.model, tmp_path / str(width), profile).num_bytes)
        weights.append(sum(program.part_bytes.values()))
    grown = (engines[1] - engines[0]) / (weights[1] - weights[0])
    print(f"{name}: {grown:.3f} bytes of engine for each byte of weights")
    assert 0.9 < grown < 1.1
