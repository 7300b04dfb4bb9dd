"""Every value of every setting, in NVIDIA's own parser and builder: a program that can be asked for can be built.

`replay.weighting: softmax` and `routing.gate: softmax`, the paper's and its release's, were values of which no test
made a program for TensorRT: it refuses a Softmax of one axis. The default run parses every value once in each form; the
slow one parses all forms, number types and pairs of values, and builds an engine of every value.
"""

from collections.abc import Iterator

import onnx_ir as ir
import pytest

from lrkit.contract.bundle.io_spec import IoSpec, program_spec
from lrkit.contract.settings import ReasonerSettings
from lrkit.export.graph.program import build_program
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.step_graphs import build_steps
from lrkit.export.graph.tower_pieces import grafted
from lrkit.export.preflight.findings import check_graph
from lrkit.export.preflight.opening import CheckedGraph
from lrkit.export.preflight.rules import load_rules
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import read_source
from lrkit.runtime.engines.tensorrt.library import load_library
from tests import variants
from tests.engines import build_engine, needs_builder, profile_for
from tests.programs import dialect_of, limits
from tests.tiny import EOS, GEOMETRY, MERGE, tiny_reasoner, tiny_trace

SINGLE, PAIRS, TARGETS = variants.single_variants(), variants.paired_variants(), variants.target_variants()
PATCHES = 160
"""Room for 40 visual tokens, so that 32 can be replayed."""
ONCE = {"program": "fp16 None", "step": "int4 fp16"}
"""Form -> number types of what is not tried in all."""
FEW = ("fp32 None", "fp32 fp16", "int4 None", "int8 fp16", "int4.vision=int4")
"""Number types of the default run beside those."""


def graphs(settings: ReasonerSettings, target: Target, form: str) -> Iterator[tuple[str, ir.Model, IoSpec, IoSpec]]:
    """(name, model, its own inputs and outputs, those of a whole answer) of each graph."""
    source = read_source(tiny_reasoner(settings))
    dialect = dialect_of(source, target)
    stack = Stack(source, dialect, limits(settings, max_patches=PATCHES), GEOMETRY)
    tower = grafted(tiny_trace(target.computes_fp16, False), dialect)
    if form == "program":
        program = build_program(stack, (EOS,), tower)
        yield "program", program.model, program.spec, program.spec
        return
    whole = program_spec(stack.shape)
    for name, step in build_steps(stack, tower).items():
        yield name, step.model, step.spec, whole


def refusals(model: ir.Model) -> list[str]:
    """What the parser says against a model."""
    library = load_library("tensorrt-rtx")
    trt = library.module
    network = trt.Builder(library.log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.log)
    if parser.parse(ir.serde.serialize_model(model).SerializeToString()):
        library.log.take()
        return []
    library.log.take()
    return [f"{parser.get_error(n).node_name()}: {parser.get_error(n).desc()}" for n in range(parser.num_errors)]


def all_refusals(settings: ReasonerSettings, target: Target, form: str) -> list[str]:
    return [f"{name}: {said}" for name, model, *_ in graphs(settings, target, form) for said in refusals(model)]


def test_every_value_is_swept():
    """Also those of types that this file never heard of: the sweep is read off the settings."""
    found = variants.changes()
    for name in ("replay.weighting=softmax", "routing.gate=softmax", "routing.layers=all", "think.halting=fixed"):
        assert name in found
    assert len(SINGLE) > 25 and len(PAIRS) > 300 and len(TARGETS) > 15


def test_a_setting_without_values_to_try_fails(monkeypatch):
    monkeypatch.setattr(variants, "NUMBERS", {})
    with pytest.raises(LookupError, match=r"no values for think\.max_latent_steps"):
        variants.changes()
    monkeypatch.setattr(variants, "SECTIONS", {})
    with pytest.raises(LookupError, match="sections"):
        variants.changes()


@pytest.mark.long
@needs_builder
def test_the_parser_takes_every_value():
    """In one form each, turn and turn about: both are made of the same chunks, and the slow run has all of both."""
    forms = {name: list(ONCE)[number % 2] for number, name in enumerate(SINGLE)}
    found = {name: all_refusals(SINGLE[name], TARGETS[ONCE[form]], form) for name, form in forms.items()}
    assert not {name: said for name, said in found.items() if said}


@needs_builder
@pytest.mark.parametrize("kind", FEW)
def test_the_parser_takes_number_types(kind):
    assert not all_refusals(SINGLE["base"], TARGETS[kind], "program")


@needs_builder
@pytest.mark.slow
@pytest.mark.parametrize("form", ONCE)
@pytest.mark.parametrize("kind", TARGETS)
def test_the_parser_takes_every_value_of_every_type(kind, form):
    found = {name: said for name in SINGLE if (said := all_refusals(SINGLE[name], TARGETS[kind], form))}
    assert not found


@needs_builder
@pytest.mark.slow
@pytest.mark.parametrize("form", ONCE)
def test_the_parser_takes_every_pair_of_values(form):
    target = TARGETS[ONCE[form]]
    found = {name: said for name in PAIRS if (said := all_refusals(PAIRS[name], target, form))}
    assert not found


@needs_builder
@pytest.mark.slow
@pytest.mark.parametrize("form", ONCE)
@pytest.mark.parametrize("name", SINGLE)
def test_the_builder_makes_engines_of_every_value(name, form, tmp_path):
    settings, target = SINGLE[name], TARGETS[ONCE[form]]
    bounds = limits(settings, max_patches=PATCHES)
    for graph, model, spec, whole in graphs(settings, target, form):
        (tmp_path / graph).mkdir()
        build_engine(model, tmp_path / graph, profile_for(spec, whole, bounds, MERGE))


@pytest.mark.parametrize("changed", ["replay.weighting=softmax", "routing.gate=softmax"])
def test_no_rule_rejects_the_values_that_were_refused(changed, tmp_path):
    """By the rules alone, without any library."""
    for graph, model, *_ in graphs(SINGLE[changed], TARGETS[ONCE["program"]], "program"):
        file = tmp_path / f"{graph}.onnx"
        ir.save(model, file)
        for target in ("tensorrt-rtx", "tensorrt-11", "tensorrt-10"):
            report = check_graph(CheckedGraph(graph, file), load_rules(target), really=False)
            assert [(f.rule, f.name) for f in report.rejected] == []
