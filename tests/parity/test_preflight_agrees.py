"""The rules of `lrkit preflight` against the real thing: NVIDIA's parser and builder, ONNX Runtime and OpenVINO.

For every rule that names TensorRT-RTX: what it calls rejected fails at the stage that it names, the twin builds, and
what it calls ignored is taken. Likewise for ONNX Runtime. TensorRT-RTX needs no GPU for this; without it its half is
skipped.
"""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from lrkit.export.preflight.findings import check_graph
from lrkit.export.preflight.rules import load_operators, load_rules
from lrkit.runtime.engines.tensorrt.library import installed_version, load_library
from tests.preflight import openvino, operators, quantized, structure
from tests.preflight.make import Case, checked, checked_twin, make

CASES: dict[str, Case] = operators.CASES | structure.CASES | quantized.CASES | openvino.CASES
RTX = {rule.id: rule for rule in load_rules("tensorrt-rtx").rules}
ORT = {rule.id: rule for rule in load_rules("ort").rules}
OPENVINO = {rule.id: rule for rule in load_rules("openvino").rules}
RTX_ONLY = pytest.mark.skipif(
    installed_version("tensorrt-rtx") is None,
    reason='needs the package tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"',
)


def build(text: str, opset: int, arch: str = "sm89") -> tuple[str, list[str]]:
    """(how far TensorRT-RTX gets: "parse" or "build" where it fails there, "engine" where it does not; what it
    said)."""
    library = load_library("tensorrt-rtx")
    trt = library.module
    library.log.take()
    builder = trt.Builder(library.log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.log)
    if not parser.parse(make(text, opset).SerializeToString()):
        return "parse", [parser.get_error(n).desc() for n in range(parser.num_errors)] + library.log.take()
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, arch.upper()), 0)
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if -1 in tensor.shape:
            profile.set_shape(tensor.name, *([n if size == -1 else size for size in tensor.shape] for n in (1, 4, 8)))
        elif tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, [1], [2], [4])
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return "build" if engine is None else "engine", library.log.take()


def build_apart(name: str) -> tuple[str, list[str]]:
    """The bad graph of a case, built in a process that may crash; a crash is a build that fails."""
    program = "import sys; from tests.parity.test_preflight_agrees import CASES, build; case = CASES[sys.argv[1]]"
    command = [sys.executable, "-c", f"{program}; print(build(case.bad, case.opset))", name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGABRT), done.stdout + done.stderr
    return "build", [done.stderr]


@RTX_ONLY
@pytest.mark.parametrize("name", RTX)
def test_tensorrt_rtx_does_what_the_rule_says(name):
    rule, case = RTX[name], CASES[name]
    arch = next((arch for arch in case.archs if arch in rule.archs), "sm89")
    reached, said = build_apart(name) if case.crashes else build(case.bad, case.opset, arch)
    assert reached == (rule.stage or "engine"), said
    assert not case.warns or any(case.warns in text for text in said), said
    reached, said = build(case.good, case.good_opset or case.opset, (case.good_archs or ("sm89",))[0])
    assert reached == "engine", said


@RTX_ONLY
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.good_archs and name in RTX])
def test_gpus_that_a_rule_does_not_name_take_the_graph(name):
    case = CASES[name]
    for arch in case.good_archs:
        reached, said = build(case.bad, case.opset, arch)
        assert reached == "engine", (arch, said)


@RTX_ONLY
@pytest.mark.parametrize("name", ["topk-unsorted", "rotary-positions"])
def test_rules_that_spare_tensorrt_rtx_do_so_because_it_builds(name):
    """NVIDIA's table forbids these for standard TensorRT; on TensorRT-RTX the measurement counts."""
    assert name not in RTX
    reached, said = build(CASES[name].bad, CASES[name].opset)
    assert reached == "engine", said


@RTX_ONLY
def test_attention_in_a_branch_fails_as_in_a_loop(tmp_path):
    """One rule for both; its case has the loop."""
    text = (
        "(float16[1,2,4,64] q, float16[1,2,4,64] k, bool c) => (float16[1,2,4,64] y) { [choose] y = If(c) <"
        "then_branch = t () => (float16[1,2,4,64] a) { [attend] a = Attention(q, k, k) }, "
        "else_branch = e () => (float16[1,2,4,64] b) { [same] b = Identity(q) }> }"
    )
    assert build(text, 23)[0] == "build"
    report = check_graph(checked(Case(text, "", "", 23), tmp_path / "bad.onnx"), load_rules("tensorrt-rtx"))
    assert [(f.rule, f.name) for f in report.rejected] == [("attention-in-body", "choose.then > attend")]


NODES = {
    "Clip": "Clip(x)", "CumSum": "CumSum(x, zero)", "Equal": "Equal(x, x)", "HardSwish": "HardSwish(x)",
    "Pad": "Pad(x, pads)", "ReduceL2": "ReduceL2(x)", "ReduceLogSum": "ReduceLogSum(x)",
    "ReduceLogSumExp": "ReduceLogSumExp(x)", "Relu": "Relu(x)", "ScatterElements": "ScatterElements(x, rows, x)",
    "ScatterND": "ScatterND(x, places, x)",
}  # fmt: skip
"""Operator -> a node of it."""
TYPES = {"BFLOAT16": "bfloat16", "BOOL": "bool", "INT32": "int32", "INT64": "int64"}


@RTX_ONLY
def test_corrections_of_the_table_are_what_the_builder_does():
    """Where NVIDIA's table of operators and its builder disagree, the builder counts; each case of it is tried."""
    table = load_operators("tensorrt-operators")
    tried = [(name, kind, "engine") for name, kinds in table.also.items() for kind in kinds]
    tried += [(name, kind, "parse") for name, kinds in table.refused.items() for kind in kinds]
    assert len(tried) >= 16
    for name, kind, expected in tried:
        made = "bool" if name == "Equal" else TYPES[kind]
        text = (
            f"({TYPES[kind]}[2,2] x) => ({made}[M,N] y) <int64 zero, int64[4] pads, int64[2,2] rows, "
            f"int64[2,1] places = {{0, 1}}> {{ [node] y = {NODES[name]} }}"
        )
        assert build(text, 22)[0] == expected, (name, kind)


@RTX_ONLY
@pytest.mark.parametrize("name", RTX)
def test_the_report_agrees_with_the_parser(name, tmp_path):
    case = CASES[name]
    for graph in (checked(case, tmp_path / "bad.onnx"), checked_twin(case, tmp_path / "good.onnx")):
        report = check_graph(graph, load_rules("tensorrt-rtx"), case.archs)
        assert report.asked is not None
        assert report.agrees, (report.asked, report.findings)
        assert report.asked.takes or report.asked.said


@RTX_ONLY
def test_a_refusal_that_no_rule_foresees_counts(tmp_path):
    """Two graph levels deep, so that the parser's name of the node must be traced back to where it stands."""
    body = "[go] go = Identity(on) [odd] new_h = Reshape<allowzero=0>(h, shape)"
    case = Case(
        bad=structure.loop("float[4]", body, last="float[M,N]", constants="int64[2] shape = {3, 3}"), good="", at=""
    )
    report = check_graph(checked(case, tmp_path / "bad.onnx"), load_rules("tensorrt-rtx"))
    assert report.agrees is False
    assert [(f.rule, f.name, f.stage) for f in report.rejected] == [("refused", "step > odd", "parse")]


def session(text: str, opset: int, file: Path) -> tuple[str, str]:
    """("load" where no session comes of it, else "engine"; operators of the optimized graph, or what was said)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(file)
    try:
        onnxruntime.InferenceSession(make(text, opset).SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common base below Exception
        return "load", str(error)
    return "engine", " ".join(node.op_type for node in onnx.load(file).graph.node)


FUSED = {
    "ort-int4-rounds-activations": ("MatMulNBits", "MatMulNBits"),
    "ort-int4-not-fused": ("DequantizeLinear Gemm", "MatMulNBits"),
    "ort-int4-float-copy": ("DequantizeLinear Loop", "Loop"),
}
"""Rule -> operators left after ONNX Runtime's fusions: (of the bad graph, of its twin)."""


@pytest.mark.parametrize("name", ORT)
def test_onnxruntime_does_what_the_rule_says(name, tmp_path):
    rule, case = ORT[name], CASES[name]
    for text, opset, stage, number in (
        (case.bad, case.opset, rule.stage or "engine", 0),
        (case.good, case.good_opset or case.opset, "engine", 1),
    ):
        reached, said = session(text, opset, tmp_path / f"{number}.onnx")
        assert reached == stage, said
        if name in FUSED:
            assert said == FUSED[name][number]


@pytest.mark.parametrize("name", ORT)
def test_the_report_agrees_with_onnxruntime(name, tmp_path):
    case = CASES[name]
    for graph in (checked(case, tmp_path / "bad.onnx"), checked_twin(case, tmp_path / "good.onnx")):
        report = check_graph(graph, load_rules("ort"))
        assert report.agrees, (report.asked, report.findings)


def test_the_fusion_rounds_activations(tmp_path):
    """What ort-int4-rounds-activations is about: the level of the node that ONNX Runtime makes."""
    file = tmp_path / "fused.onnx"
    session(CASES["ort-int4-rounds-activations"].bad, 21, file)
    (node,) = onnx.load(file).graph.node
    assert {a.name: a.i for a in node.attribute}["accuracy_level"] == 4


def loaded_by_openvino(text: str, opset: int, file: Path) -> tuple[str, str]:
    """("load" where OpenVINO refuses it, else "engine"; what it said)."""
    library, reader = (pytest.importorskip(f"lrkit.runtime.engines.openvino.{name}") for name in ("library", "reader"))
    pytest.importorskip("openvino", reason='needs the package openvino: pip install "lrkit[openvino]"')
    file.write_bytes(make(text, opset).SerializeToString())
    try:
        library.core().compile_model(reader.parse(file), "CPU")
    except Exception as error:  # OpenVINO raises RuntimeError, and its binding others
        return "load", library.said(error)
    return "engine", ""


@pytest.mark.parametrize("name", OPENVINO)
def test_openvino_does_what_the_rule_says(name, tmp_path):
    rule, case = OPENVINO[name], CASES[name]
    reached, said = loaded_by_openvino(case.bad, case.opset, tmp_path / "bad.onnx")
    assert reached == (rule.stage or "engine"), said
    quoted = re.search('"(.+)"', rule.source)
    assert rule.stage is None or (quoted is not None and quoted[1] in said), said
    reached, said = loaded_by_openvino(case.good, case.good_opset or case.opset, tmp_path / "good.onnx")
    assert reached == "engine", said


@pytest.mark.parametrize("name", OPENVINO)
def test_the_report_agrees_with_openvino(name, tmp_path):
    pytest.importorskip("openvino", reason='needs the package openvino: pip install "lrkit[openvino]"')
    case = CASES[name]
    for graph in (checked(case, tmp_path / "bad.onnx"), checked_twin(case, tmp_path / "good.onnx")):
        report = check_graph(graph, load_rules("openvino"))
        assert report.agrees, (report.asked, report.findings)


def off_on_openvino(text: str, file: Path, **properties: object) -> float:
    """Largest difference between what OpenVINO and ONNX Runtime compute of the program, on random inputs and floats."""
    openvino = pytest.importorskip("openvino", reason='needs the package openvino: pip install "lrkit[openvino]"')
    random, model = np.random.default_rng(0), make(text)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            drawn = random.standard_normal(tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(drawn, tensor.name))
    onnx.save(model, file)
    session = onnxruntime.InferenceSession(
        str(file), providers=["CPUExecutionProvider"], disabled_optimizers=["QDQSelectorActionTransformer"]
    )
    (given,) = session.get_inputs()
    feed = {given.name: random.standard_normal(given.shape).astype(np.float32)}
    (expected,) = session.run(None, feed)
    model = openvino.Core().read_model(file)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **properties})
    return float(np.abs(compiled(feed)[0] - expected).max())


def test_openvino_gives_one_position_to_every_token(tmp_path):
    case = CASES["openvino-rotary-offset"]
    assert off_on_openvino(case.bad, tmp_path / "bad.onnx") > 0.1
    assert off_on_openvino(case.good, tmp_path / "good.onnx") < 1e-5


def test_openvino_rounds_activations_beside_int4_unless_told(tmp_path):
    wide = quantized.product("int4[256,64] w, float[2,64] s", quantized.BLOCKS.replace("32", "128"), width=256)
    text = wide.replace("float[2,8] y", "float[2,64] y")
    assert off_on_openvino(text, tmp_path / "a.onnx") > 1e-3
    assert off_on_openvino(text, tmp_path / "b.onnx", DYNAMIC_QUANTIZATION_GROUP_SIZE=0) < 1e-3
