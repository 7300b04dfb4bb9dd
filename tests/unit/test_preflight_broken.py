"""Programs of strangers given to `lrkit preflight`: cut, contradictory or with weights elsewhere, each is one
sentence that says what to do."""

import os
import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrkit.cli.preflight import _own_targets as targets_meant
from lrkit.cli.shared.export_target import engine_for_bundle
from lrkit.errors import UserError
from lrkit.export.preflight.findings import check_graph
from lrkit.export.preflight.opening import CheckedGraph
from lrkit.export.preflight.rules import load_rules

FLOAT = TensorProto.FLOAT


def model(*nodes: onnx.NodeProto, inits: tuple = (), opset: int = 21) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(list(nodes), "g", [value("x", FLOAT, [4])], [value("y", FLOAT, [4])], list(inits))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(operator: str, inputs: str = "x", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(","), ["y"], name="odd", **attributes)


def empty_graph() -> onnx.GraphProto:
    return helper.make_graph([], "b", [], [])


def outside(location: str, offset: object = 0, length: int = 16) -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=str(value))
    return model(node("Add", "x,w"), inits=(weight,))


def dequantize(**attributes: object) -> onnx.ModelProto:
    weight, scale = (numpy_helper.from_array(np.ones((4, 4), t), n) for t, n in ((np.int8, "w"), (np.float32, "s")))
    return model(node("DequantizeLinear", "w,s", **attributes), inits=(weight, scale))


ABS = model(node("Abs")).SerializeToString()
BROKEN: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "cut off": (lambda: ABS[: len(ABS) // 2], "cannot be read as an ONNX program"),
    "text": (lambda: b"no program\n" * 9, "cannot be read as an ONNX program"),
    "empty": (lambda: b"", "cannot be read|holds no nodes"),
    "no nodes": (model, "holds no nodes; give"),
    "no operator": (lambda: model(node("")), "node odd has no operator; write"),
    "Loop without body": (lambda: model(node("Loop", ",,x")), "the Loop odd has no body; write"),
    "Loop whose body is a number": (lambda: model(node("Loop", ",,x", body=3)), "the Loop odd has no body"),
    "Loop with an empty body": (lambda: model(node("Loop", ",,x", body=empty_graph())), "1 carried states, which its"),
    "Scan without body": (lambda: model(node("Scan", num_scan_inputs=1)), "the Scan odd has no body"),
    "If without branches": (lambda: model(node("If")), "the If odd has no then and no else"),
    "attribute of another kind": (lambda: dequantize(block_size="abc", axis=0), "contradicts itself.*; mend it"),
    "weights above the folder": (lambda: outside("../other.bin"), r"in '\.\./other\.bin', outside its folder; do not"),
    "weights at the root": (lambda: outside("/etc/hostname"), "outside its folder; do not use"),
    "weights behind a link": (lambda: outside("link.bin"), "outside its folder; do not use"),
    "weights of a device": (lambda: outside("/dev/zero"), "outside its folder"),
    "weights missing": (lambda: outside("none.bin"), r"'none\.bin', which is not beside it; copy both"),
    "weights cut off": (lambda: outside("short.bin"), r"'short\.bin', which holds its weights, is cut off; copy"),
    "weights from far behind": (lambda: outside("short.bin", 10**15), "is cut off; copy it again"),
    "weights from before the start": (lambda: outside("short.bin", -4), "is cut off|cannot be read"),
    "weights from nowhere": (lambda: outside("short.bin", "abc"), "cannot be read as an ONNX program"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_program_is_one_sentence(name, tmp_path):
    make, said = BROKEN[name]
    made = make()
    file = tmp_path / "odd.onnx"
    file.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    (tmp_path / "short.bin").write_bytes(b"abc")
    os.symlink("/etc/hostname", tmp_path / "link.bin")
    for target in ("tensorrt-rtx", "tensorrt-10", "ort"):
        try:
            check_graph(CheckedGraph(file.name, file), load_rules(target), really=False)
        except UserError as error:
            assert "\n" not in str(error) and ";" in str(error)
            seen = str(error)
        else:
            assert target == "ort", "the rules of TensorRT look at each of these"
    assert re.search(said, seen), seen


ODD: dict[str, onnx.ModelProto] = {
    "cyclic": model(
        helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Abs", ["a"], ["b"]), node("Abs", "b")
    ),
    "a value that nothing makes": model(node("Add", "x,nowhere")),
    "operators without inputs": model(
        *(helper.make_node(name, [], [name]) for name in ("Softmax", "MatMul", "TopK", "Squeeze", "Concat", "Shape"))
    ),
    "a constant of no elements": model(node("TopK", "x,k"), inits=(numpy_helper.from_array(np.zeros(0, int), "k"),)),
    "a block below zero": dequantize(block_size=-7, axis=99),
    "an opset of the far future": model(node("Abs"), opset=10**12),
    "a long name": model(helper.make_node("Abs", ["x"], ["y"], name="n" * 1_000_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_program_is_read_all_the_same(name, tmp_path):
    file = tmp_path / "odd.onnx"
    file.write_bytes(ODD[name].SerializeToString())
    for target in ("tensorrt-rtx", "ort"):
        assert check_graph(CheckedGraph(file.name, file), load_rules(target), really=False).num_nodes > 0


def test_a_chain_of_thousands_of_nodes_is_followed(tmp_path):
    """Whether the axes of a Squeeze fold was asked by one call inside the other, which Python allows a thousand of."""
    chain = [helper.make_node("Neg", [f"k{number}"], [f"k{number + 1}"]) for number in range(3000)]
    axes = numpy_helper.from_array(np.array([0]), "k0")
    file = tmp_path / "chain.onnx"
    for last, rejected in (("k3000", []), ("x", ["squeeze-axes"])):
        file.write_bytes(model(*chain, node("Squeeze", f"x,{last}"), inits=(axes,)).SerializeToString())
        report = check_graph(CheckedGraph("chain", file), load_rules("tensorrt-11"), really=False)
        assert [finding.rule for finding in report.rejected] == rejected


@pytest.mark.parametrize("target", [{"provider_options": [1]}, {"provider_options": "x"}, {"engine": []}])
def test_a_target_of_another_kind_in_a_bundle_is_passed_over(target, tmp_path):
    file = tmp_path / "abs.onnx"
    file.write_bytes(ABS)
    graph = CheckedGraph("abs", file, target, "tensorrt")
    assert not check_graph(graph, load_rules("tensorrt-11"), really=False).rejected
    assert targets_meant(graph) == ("tensorrt-rtx", "tensorrt-11", "tensorrt-10")
    with pytest.raises(UserError, match="nothing says which engine to build; give"):
        engine_for_bundle(target, None, [], None, None)
