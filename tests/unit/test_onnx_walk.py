"""What a program would open beside itself: found wherever ONNX allows a tensor, and refused before it is opened."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.bundle.onnx_walk import mentions
from lrkit.runtime.sdk import Reasoner
from tests.hostile import edit, program, refusal, resign, sentence, without_samples


def outside(name: str, place: str) -> onnx.TensorProto:
    """A tensor whose content lies in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.INT64, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", place), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def hidden_in(where: str, place: str) -> Callable[[onnx.ModelProto], object]:
    """Puts such a tensor into a model, wherever the format allows one."""
    tensor = outside("stolen", place)

    def node() -> onnx.NodeProto:
        return helper.make_node("Constant", [], ["stolen_out"], value=tensor)

    def graph() -> onnx.GraphProto:
        return helper.make_graph([], "inner", [], [], [tensor])

    def change(model: onnx.ModelProto) -> None:
        if where == "initializer":
            model.graph.initializer.append(tensor)
        elif where == "constant":
            model.graph.node.append(node())
        elif where == "tensors":
            model.graph.node.append(helper.make_node("Constant", [], ["t"], values=[tensor]))
        elif where == "sparse":
            model.graph.sparse_initializer.add(values=tensor, dims=[1])
        elif where == "indices":
            model.graph.sparse_initializer.add(indices=tensor, dims=[1])
        elif where == "sparse attribute":
            sparse = onnx.SparseTensorProto(values=tensor, dims=[1])
            model.graph.node.append(helper.make_node("Constant", [], ["s"], sparse_value=sparse))
        elif where == "body":
            model.graph.node.append(helper.make_node("If", ["think"], ["i"], then_branch=graph(), else_branch=graph()))
        elif where == "body in a body":
            inner = graph()
            inner.node.append(helper.make_node("Loop", ["", ""], ["l"], body=helper.make_graph([node()], "b", [], [])))
            model.graph.node.append(helper.make_node("If", ["think"], ["i"], then_branch=inner, else_branch=graph()))
        elif where == "graphs":
            model.graph.node.append(helper.make_node("Odd", [], ["o"], domain="x", graphs=[graph(), graph()]))
        elif where == "function":
            model.functions.append(helper.make_function("x", "F", [], ["y"], [node()], [helper.make_opsetid("", 21)]))
        elif where == "default of a function":
            made = helper.make_function("x", "F", [], ["y"], [], [helper.make_opsetid("", 21)])
            made.attribute_proto.append(helper.make_attribute("value", tensor))
            model.functions.append(made)
        else:
            model.training_info.add(algorithm=graph())

    return change


PLACES = [
    "initializer", "constant", "tensors", "sparse", "indices", "sparse attribute", "body", "body in a body", "graphs",
    "function", "default of a function", "training",
]  # fmt: skip


@pytest.mark.parametrize("where", PLACES)
def test_weights_in_a_file_that_is_not_listed(own_bundle: Path, where: str) -> None:
    (own_bundle / "extra.bin").write_bytes(bytes(64))
    program(own_bundle, change=hidden_in(where, "extra.bin"))
    assert "latent.onnx has weights in 'extra.bin', which bundle.json does not list as its data" in refusal(own_bundle)


@pytest.mark.parametrize(
    "place", ["/etc/passwd", "../cot.onnx", "samples/../../x", "C:\\x", "*/_ORT_MEM_ADDR_/*", "", ".", "\x1b[31m", "é"]
)
def test_weights_from_anywhere(own_bundle: Path, place: str) -> None:
    program(own_bundle, change=hidden_in("body", place))
    assert "which bundle.json does not list as its data" in refusal(own_bundle)


def test_listed_files_of_other_kinds_are_no_weights(own_bundle: Path) -> None:
    """Only what the program's entry names as its data: not a picture, and not another program."""
    program(own_bundle, change=hidden_in("constant", "cot.onnx"))
    assert "has weights in 'cot.onnx'" in refusal(own_bundle)
    edit(own_bundle, lambda values: values["programs"]["latent"].update(data="cot.onnx"))
    assert open_bundle(own_bundle).program("latent").data == "cot.onnx"


def test_two_places_in_one_tensor(own_bundle: Path) -> None:
    """The first is harmless; ONNX Runtime reads the last."""
    (own_bundle / "w.bin").write_bytes(bytes(8))
    tensor = outside("twice", "w.bin")
    tensor.external_data.add(key="location", value="/etc/hosts")
    program(own_bundle, change=lambda model: model.graph.initializer.append(tensor))
    resign(own_bundle, "w.bin")
    edit(own_bundle, lambda values: values["programs"]["latent"].update(data="w.bin"))
    assert "has weights in '/etc/hosts'" in refusal(own_bundle)


def test_a_compiled_program_in_a_node(own_bundle: Path) -> None:
    node = helper.make_node("EPContext", [], ["c"], domain="com.microsoft", ep_cache_context="x.so", embed_mode=0)
    program(own_bundle, change=lambda model: model.graph.node.append(node))
    assert "latent.onnx holds a compiled program (EPContext)" in refusal(own_bundle)


def test_the_walk_sees_what_a_real_program_names(step_bundle: Path) -> None:
    """Against the package onnx, which the base install lacks."""
    for file in sorted(step_bundle.glob("*.onnx")):
        model = onnx.load(str(file), load_external_data=False)
        expected = {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        found = list(mentions(file))
        assert {one.text for one in found if one.what == "location"} == expected == {"latent.onnx.data"}
        assert {node.op_type for node in model.graph.node} <= {one.text for one in found if one.what == "operator"}


@pytest.mark.parametrize("seed", range(3))
def test_cut_and_altered_programs(own_bundle: Path, seed: int) -> None:
    """Whatever the bytes are: one sentence, or a program that opens."""
    chance = np.random.default_rng(seed)
    path = own_bundle / "latent.onnx"
    content = bytearray(path.read_bytes()[:40_000])
    without_samples(own_bundle)
    for _ in range(20):
        changed = bytearray(content[: int(chance.integers(0, len(content)))])
        for place in chance.integers(0, max(1, len(changed)), 8) if changed else []:
            changed[place] = int(chance.integers(0, 256))
        path.write_bytes(changed)
        resign(own_bundle)
        assert str(path.name) in sentence(lambda: Reasoner.load(own_bundle, threads=1))
