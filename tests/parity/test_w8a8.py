"""Products of bytes with bytes: the scheme w8a8, in the tower and in chunks of many tokens, against numpy and torch.

Published towers have tokens that are a hundred times as large as the others. With one scale for all of them nothing
would be left of the others.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lrkit.contract.schemes import SCHEMES
from lrkit.contract.settings import ReasonerSettings
from lrkit.export.graph.dialects import writer_for
from lrkit.export.graph.nodes import Graph
from lrkit.export.targets.target import Target
from lrkit.export.weights.layer_recipe import Norm
from lrkit.export.weights.quantizers.quantizer import quantized
from lrkit.runtime.engines.onnxruntime.engine import optimizers_off
from tests.programs import Runner, assert_equal, build, torch_run, with_rounded_weights
from tests.tiny import prompt, tiny_reasoner

ROW = SCHEMES["w8a8"]
AS_WRITTEN = {"session.disable_quant_qdq": "1"}
WIDTH, OUT, TOKENS = 640, 576, 24
SETTINGS = ReasonerSettings.model_validate(
    {"think": {"max_latent_steps": 3}, "replay": {"num_tokens": 4}, "routing": {"depth": 1, "alpha": 4}}
)


@pytest.fixture
def small_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of a tiny model become bytes as well."""
    monkeypatch.setitem(SCHEMES, "w8a8", replace(ROW, least=1))


def matrix() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((OUT, WIDTH)).astype(np.float32)


def written(weight: np.ndarray, **values: Any) -> tuple[bytes, Target]:
    """A graph of x (S, WIDTH) times a matrix of the tower, plus a bias of ones: y, by what a target writes."""
    target = Target.model_validate({"precision": "int4", "int4": {"vision": "w8a8"}, **values})
    write = writer_for(target, lambda _: weight, Norm("rms", 1e-6))
    g = Graph(write.floats)
    given = g.input("x", write.floats, ("S", WIDTH))
    bias = g.value(np.ones(OUT, write.floats.numpy()))
    made = g.typed(write.linear(g, given, "m", bias, part="vision", given=weight), write.floats, ("S", OUT), "y")
    proto: Any = ir.to_proto(g.model([given], [made], "product", {}))
    return proto.SerializeToString(), target


def product(kind: str, x: np.ndarray, weight: np.ndarray, activations: str = "fp32") -> np.ndarray:
    """What that gives on ONNX Runtime, by a dialect, or, as `openvino`, by a program for OpenVINO."""
    values = {"dialect": "standard", "openvino": {}} if kind == "openvino" else {"dialect": kind}
    graph, target = written(weight, activations=activations, **values)
    off = optimizers_off(target.dialect, "int4")
    session: Any = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"], disabled_optimizers=off)
    kind_of_x = np.float16 if activations == "fp16" else np.float32
    return session.run(["y"], {"x": x.astype(kind_of_x)})[0].astype(np.float32)


def uneven() -> np.ndarray:
    """Tokens of very different sizes; of one, 7, a single number is large, and 13 is zero."""
    x = np.random.default_rng(1).standard_normal((TOKENS, WIDTH)).astype(np.float32)
    x[3] *= 100
    x[7, 5] = 60
    x[11] *= 1e-3
    x[13] = 0
    return x


def error(made: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of each row, as a part of its length."""
    return np.linalg.norm(made - wanted, axis=1) / np.linalg.norm(wanted, axis=1)


@pytest.mark.parametrize("activations", ["fp32", "fp16"])
@pytest.mark.parametrize("dialect", ["ort", "standard", "openvino"])
def test_each_token_is_rounded_by_its_own_largest(dialect: str, activations: str) -> None:
    x, weight = uneven(), matrix()
    made, wanted = product(dialect, x, weight, activations), x @ weight.T + 1
    assert np.array_equal(made[13], np.ones(OUT)), "zeros stay zeros"
    least = 1e-3 if activations == "fp16" else 1e-5
    others = [row for row in range(TOKENS) if row not in (7, 13)]
    assert (error(made, wanted)[others] < 0.02).all()
    held = quantized(weight, ROW, 128, "m")
    assert held is not None
    exact = error(made, x @ held.dequantize().T + 1).max()
    assert exact < least if dialect == "standard" else least < exact < 0.2, "no engine rounds activations"


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_openvino_multiplies_bytes_by_bytes(tmp_path: Path, precision: str) -> None:
    """Not the floats that they stand for, which its reader would do without a constant scale; numbers as ONNX
    Runtime's."""
    openvino = pytest.importorskip("openvino")
    from lrkit.runtime.engines.openvino.reader import parse

    graph, _ = written(matrix(), dialect="standard", openvino={"precision": precision})
    (tmp_path / "product.onnx").write_bytes(graph)
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("a CPU without products in bf16")
    compiled = core.compile_model(
        parse(tmp_path / "product.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
    )
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kernels = [info["primitiveType"].astype(str) for info in nodes if "FullyC" in info["layerType"].astype(str)]
    assert any("i8" in kernel for kernel in kernels), kernels
    x = uneven()
    found = compiled([x])[0]
    assert np.array_equal(found[13], np.ones(OUT)), "zeros stay zeros"
    rows = [row for row in range(TOKENS) if row != 13]
    assert error(found, product("openvino", x, matrix()))[rows].max() < (1e-5 if precision == "f32" else 0.02)


def test_no_sum_of_two_products_leaves_sixteen_bits() -> None:
    """CPUs without VNNI add two products of a byte and a weight in 16 bits, and saturate."""
    weight = matrix()
    weight[0] = np.where(np.arange(WIDTH) % 2, 1.0, -1.0) * 7
    weight[1] = 0
    held = quantized(weight, ROW, 128, "m")
    assert held is not None
    assert 2 * 255 * int(np.abs(held.integers.astype(int)).max()) < 2**15
    assert (np.abs(weight - held.dequantize()) <= held.scales * 0.5001).all()


def test_what_is_small_stays_as_it_is() -> None:
    assert quantized(matrix()[:500], ROW, 128, "m") is None
    reasoner = tiny_reasoner(SETTINGS)
    chosen, plain = (
        build(reasoner, Target.model_validate({"precision": "int4", "int4": {"block": 32, **parts}}))
        for parts in ({"vision": "w8a8", "chunks": "w8a8"}, {})
    )
    proto = [ir.to_proto(program.model).SerializeToString() for program in (chosen, plain)]
    assert proto[0] == proto[1] and chosen.part_bytes == plain.part_bytes


def operators(graph: ir.Graph) -> Iterator[str]:
    for node in graph.all_nodes():
        yield node.op_type


@pytest.mark.usefixtures("small_too")
def test_a_tower_of_bytes_is_near_torch() -> None:
    """And exactly it where activations stay float."""
    for dialect in ("ort", "standard"):
        values = {"precision": "int4", "dialect": dialect, "int4": {"vision": "w8a8", "block": 32, "accuracy_level": 1}}
        target = Target.model_validate(values)
        reasoner = with_rounded_weights(tiny_reasoner(SETTINGS), target)
        program = build(tiny_reasoner(SETTINGS), target)
        asked = prompt(3, grids=((1, 4, 4), (1, 2, 6)))
        if dialect == "standard":
            assert_equal(reasoner, Runner(program, **AS_WRITTEN), asked, fixed=True)
            continue
        assert "MatMulIntegerToFloat" in set(operators(program.model.graph))
        _, logits, _, _ = torch_run(reasoner, asked, fixed=True)
        found = Runner(program)(asked, fixed=True)["prefill_logits"]
        assert 0 < np.abs(found - logits).max() < 0.1 * np.abs(logits).max()


@pytest.mark.usefixtures("small_too")
def test_chunks_of_bytes_hold_what_the_layers_hold() -> None:
    """The prompt and latent steps of five tokens read them, single tokens do not."""
    values = {"precision": "int4", "int4": {"chunks": "w8a8", "block": 32, "accuracy_level": 1}}
    target = Target.model_validate(values)
    reasoner = with_rounded_weights(tiny_reasoner(SETTINGS), target)
    program = build(tiny_reasoner(SETTINGS), target)
    assert program.part_bytes["chunks"] > program.part_bytes["layers"]
    asked = prompt(3, grids=((1, 4, 4), (1, 2, 6)))
    answer, logits, states, _ = torch_run(reasoner, asked, fixed=True)
    out: dict[str, Any] = Runner(program)(asked, fixed=True)
    assert answer.latent_steps == int(out["latent_steps"]) == 3
    assert 0 < np.abs(out["prefill_logits"] - logits).max() < 0.1 * np.abs(logits).max()
    # A token that is replayed instead of a near equal moves a later state; the first step replays by the prompt's row.
    assert np.abs(out["latent_states"][0] - states[0]).max() < 0.15 * np.abs(states[0]).max()


@pytest.mark.usefixtures("small_too")
def test_a_whole_program_of_bytes_in_the_standard_dialect_is_torch() -> None:
    target = Target.model_validate({"precision": "w8a8", "dialect": "standard", "int4": {"block": 32}})
    reasoner = with_rounded_weights(tiny_reasoner(SETTINGS), target)
    assert_equal(reasoner, Runner(build(tiny_reasoner(SETTINGS), target), **AS_WRITTEN), prompt(2), fixed=True)


def test_a_tower_is_bytes_on_a_cpu_and_float_elsewhere_unless_the_target_says() -> None:
    def vision(**values: Any) -> str:
        return Target.model_validate({"precision": "int4", **values}).int4.vision

    assert vision() == vision(precision="int8") == vision(precision="w8a8") == "w8a8"
    assert vision(provider="cuda") == vision(dialect="standard") == vision(int4={"vision": "float"}) == "float"
    assert vision(int4={"vision": "int4"}) == "int4"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"provider": "cuda", "int4": {"vision": "w8a8"}},
            "vision would be w8a8, .* on a CPU alone.*int4.vision=float",
        ),
        ({"provider": "cuda", "int4": {"chunks": "w8a8"}}, "chunks would be w8a8, .* set int4.chunks=same"),
        ({"dialect": "standard", "int4": {"chunks": "w8a8"}}, "chunks is w8a8, .* for OpenVINO alone have; set"),
        ({"int4": {"chunks": "int8"}}, "int4.chunks is 'int8', and int4 takes same, w8a8"),
    ],
)
def test_what_cannot_be_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target.model_validate({"precision": "int4", **values})
