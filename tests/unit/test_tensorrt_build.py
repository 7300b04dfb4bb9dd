"""Building engines, without a model: options, profiles, words, the builder's process, targets.

Where a builder is needed it is NVIDIA's own, on a graph of one node.
"""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from lrkit.config import load_config
from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.bundle.io_spec import IoSpec, TensorSpec
from lrkit.contract.bundle.manifest import Limits
from lrkit.errors import ConfigError, ExportError
from lrkit.export.graph.nodes import Graph
from lrkit.export.targets.engine_target import EngineTarget
from lrkit.export.targets.target import Target
from lrkit.export.tensorrt.device.build_engine import BuildError, Package, Watch, build, set_archs, set_options
from lrkit.export.tensorrt.device.words import explain, known_archs, place_of
from lrkit.export.tensorrt.into_bundle import add_engines
from lrkit.export.tensorrt.jobs import axis_sizes, check_programs, profile_of
from lrkit.export.tensorrt.process import build_in_process
from lrkit.resources import list_resources
from lrkit.runtime.engines.tensorrt.library import load_library
from tests.engines import PACKAGE, build_engine, needs_builder

PROFILE = {"x": ((1, 4), (8, 4), (16, 4))}


def one_node(operator: str = "Add") -> ir.Model:
    g = Graph()
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    with g.scope("think"), g.scope("layer2"):
        y = g.op(operator, x, np.ones(4, np.float32))
    return g.model([x], [g.typed(y, ir.DataType.FLOAT, ("N", 4), "y")], "one", {})


@needs_builder
def test_options_reach_the_builder(tmp_path):
    library = load_library("tensorrt-rtx")
    trt = library.module
    config = trt.Builder(library.log).create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32), "NVIDIA's default, which the option is for"
    options = {"workspace_mb": 64, "optimization_level": 1, "tf32": False, "layer_details": "detailed"}
    options["weight_streaming"] = True
    set_options(package(**vars(trt)), config, options)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert config.builder_optimization_level == 1
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert config.get_flag(trt.BuilderFlag.WEIGHT_STREAMING) and not config.get_flag(trt.BuilderFlag.TF32)
    assert build_engine(one_node(), tmp_path, PROFILE, **options).entry["options"] == options


@needs_builder
def test_a_timing_cache_is_written_and_read_again(tmp_path):
    """TensorRT-RTX times nothing, so only the path of the file is shown, not that a second build is faster."""
    cache = tmp_path / "timings"
    build_engine(one_node(), tmp_path, PROFILE, timing_cache=str(cache))
    written = cache.read_bytes()
    assert written
    build_engine(one_node(), tmp_path, PROFILE, timing_cache=str(cache))
    assert len(cache.read_bytes()) >= len(written)


@needs_builder
def test_a_release_without_the_flag_of_strong_typing_or_a_monitor_builds_too(tmp_path):
    """TensorRT 11 knows strongly typed networks only and may drop the flag that 10 needs."""
    library = load_library("tensorrt-rtx")
    gone = {"NetworkDefinitionCreationFlag", "IProgressMonitor"}
    assert gone <= set(vars(library.module))
    other = package(**{name: value for name, value in vars(library.module).items() if name not in gone})
    other.name, other.log = PACKAGE, library.log
    ir.save(one_node(), tmp_path / "model.onnx")
    job = {"graph": "program", "onnx": "model.onnx", "engine": "model.engine", "profile": PROFILE}
    entry = build(other, job, {"options": {}, "archs": ["sm89"]}, tmp_path, Watch())
    assert entry["archs"] == ["sm89"] and (tmp_path / "model.engine").stat().st_size > 1000


@needs_builder
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hardware_compatibility": "ampere_plus"}, r"tensorrt_rtx \S+ does not take the option hardware_compat"),
        ({"version_compatible": True}, r"tensorrt_rtx \S+ cannot build model.onnx"),
    ],
)
def test_options_that_this_package_cannot_do_are_one_sentence(options, said, tmp_path):
    with pytest.raises(ExportError, match=said) as refused:
        build_engine(one_node(), tmp_path, PROFILE, **options)
    assert "\n" not in str(refused.value) and not list(tmp_path.glob("*.engine"))


def package(**names: object) -> Package:
    """A package of another release, which lacks things: only their names are asked for."""
    made = Package.__new__(Package)
    made.name, made.version, made.errors, made.trt = "tensorrt", "12.0", [], SimpleNamespace(**names)
    return made


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"weight_streaming": True}, "BuilderFlag.WEIGHT_STREAMING"),
        ({"workspace_mb": 5}, "MemoryPoolType.WORKSPACE"),
        ({"timing_cache": "cache"}, "create_timing_cache"),
        ({"hardware_compatibility": "ampere_plus"}, "HardwareCompatibilityLevel.AMPERE_PLUS"),
        ({"optimization_level": 3}, "builder_optimization_level"),
    ],
)
def test_an_option_that_a_release_lacks_is_named(options, missing):
    with pytest.raises(
        BuildError, match=f"tensorrt 12.0 has no {missing}, which the option {next(iter(options))} needs"
    ):
        set_options(package(), SimpleNamespace(), options)


def test_a_package_without_a_choice_of_gpus_builds_for_the_one_at_hand():
    assert known_archs(package().trt) == []
    with pytest.raises(BuildError, match="for the GPU of this machine only"):
        set_archs(package(), SimpleNamespace(), ["sm89"])


@needs_builder
def test_shapes_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(ExportError, match=r"the optimization profile|cannot build"):
        build_engine(one_node(), tmp_path, {"x": ((9, 4), (8, 4), (16, 4))})
    with pytest.raises(ExportError, match=r"has no input \['z'\]"):
        build_engine(one_node(), tmp_path, {"z": ((1, 4), (8, 4), (16, 4))})


@needs_builder
def test_an_operator_without_an_importer_is_named_with_its_place(tmp_path):
    with pytest.raises(
        ExportError, match=r"think/layer2/Multinomial \(operator Multinomial, the latent step, layer 2\)"
    ):
        build_engine(one_node("Multinomial"), tmp_path, PROFILE)


def test_places_in_a_program():
    assert place_of("think/layer12/refine/MatMul.3") == "the latent step, layer 12, refinement"
    assert place_of("prompt/layer0/Gemm") == "the prompt, layer 0"
    assert place_of("speak/Loop") == "the speech"
    assert place_of("vision/Add.7") == "the vision tower"
    assert place_of("3.gate_up") == "the weight gate_up of layer 3"
    assert place_of("Identity.4") == "outside of the four parts"


def test_the_builders_words_are_traced_to_a_node():
    """The first is what TensorRT-RTX 1.7.1 said of an int4 graph; the others have the forms of NVIDIA's messages."""
    layers = ["think/layer2/MatMul.3", "const/int64/1"]
    network = SimpleNamespace(num_layers=2, get_layer=lambda number: SimpleNamespace(name=layers[number]))
    fused = (
        "Error Code 1: Myelin (CHECK failed. empty runtime-fusion MVMF for '__myl_ReplCastMulCastFc' In compileGraph)"
    )
    assert explain(fused, network).startswith("it fails at a fusion of its own (Repl, Cast, Mul, Cast, Fc), of whose")
    foreign = "Could not find any implementation for node {ForeignNode[const/int64/1...think/layer2/MatMul.3]}."
    found = "it fails at the node think/layer2/MatMul.3 (operator MatMul, the latent step, layer 2): "
    assert explain(foreign, network) == found + foreign
    assert explain("out of memory", network) == "it names no node: out of memory"


def test_profiles_come_from_the_limits():
    limits = Limits(max_prompt_tokens=100, max_patches=43, max_images=1, max_latent_steps=2, max_new_tokens=5)

    def spec(name: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype="int64", shape=shape, meaning="")

    answer = IoSpec(form="step", inputs=(), outputs=(spec("replayed", 2, 3),))
    sizes = axis_sizes(limits, 4, answer, tokens=500, patches=21)
    assert sizes == {
        "P": (1, 100, 100), "L": (0, 0, 100), "L+P": (1, 100, 100), "V0": (0, 0, 100), "N": (4, 20, 40), "K": (3, 3, 3),
        "Q": (1, 100, 100), "windows": (1, 5, 10),
    }, "whole squares, within the limits, and a window for each"  # fmt: skip
    given = IoSpec(form="step", inputs=(spec("a", "P+K"), spec("b", 7, "N"), spec("c", 5)), outputs=())
    assert profile_of(given, sizes) == {"a": ((4,), (103,), (103,)), "b": ((7, 4), (7, 20), (7, 40))}


@needs_builder
def test_a_builder_that_dies_is_not_waited_for(tmp_path):
    """Whatever ends the process, the parent hears of it."""
    with pytest.raises(ExportError, match=r"none of the packages tensorrt_of_none is installed"):
        build_in_process({"packages": ["tensorrt_of_none"], "folder": str(tmp_path), "jobs": [{}]}, lambda sign: None)
    with pytest.raises(ExportError, match=r"process ended by exit code 1 after 0 s; its last words: KeyError: 'jobs'"):
        build_in_process({"packages": [PACKAGE], "folder": str(tmp_path)}, lambda sign: None)


@needs_builder
def test_programs_that_no_engine_can_be_built_from(bundle):
    with pytest.raises(ExportError, match=r"the latent program is in the dialect ort, .*--dialect standard"):
        add_engines(bundle, EngineTarget(kind="tensorrt-rtx"))
    manifest = open_bundle(bundle, verify=False).manifest
    int4 = {"dialect": "standard", "precision": "int4"}
    programs = {role: entry.model_copy(update=int4) for role, entry in manifest.programs.items()}
    check_programs(programs, ("sm89",))
    with pytest.raises(ExportError, match="int4 weights, which sm75 cannot compute with"):
        check_programs(programs, ("sm75", "sm89"))


def test_every_target_is_valid_and_says_how_it_was_tried():
    targets = {found.name: found for found in list_resources("target")}
    asked = {"rtx-pc", "jetson-orin-trt10", "jetson-orin-trt11", "jetson-thor", "l4", "h200"}
    assert asked <= set(targets) and len(targets) >= 9
    for name, found in targets.items():
        target = load_config(Target, found.path)
        assert target.description
        if name in asked:
            assert target.engine is not None and target.dialect == "standard"
            text = found.path.read_text()
            assert f"lrkit export tiny --target {name}" in text
            assert "[documented" in text or "[datasheet" in text
            assert "never run" in text, f"{name} must say that it was not tried on its device"


def test_engine_sections_that_contradict_themselves():
    for values, part in (
        ({"kind": "tensorrt", "archs": ["sm89"]}, "leave them out"),
        ({"kind": "tensorrt-rtx", "options": {"version_compatible": True}}, "are for tensorrt, not for tensorrt-rtx"),
        ({"kind": "tensorrt", "options": {"workspace": 1}}, "workspace_mb"),
        ({"kind": "tensorrt-rtx", "archs": ["../sm89"]}, r"'\.\./sm89' is no compute capability; write it as sm89"),
        ({"kind": "tensorrt-rtx", "archs": ["x" * 1000]}, "x' is no compute capability"),
    ):
        with pytest.raises(ConfigError, match=part):
            load_config(EngineTarget, values)
