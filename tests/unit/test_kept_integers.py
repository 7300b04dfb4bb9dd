"""Integers that a checkpoint holds stand in a program as they are: its products, its rows, and what a target keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lrkit.contract.quantized import Quantized
from lrkit.export.graph.dialects import writer_for
from lrkit.export.graph.nodes import Graph
from lrkit.export.kept_integers import KeptIntegers
from lrkit.export.targets.target import Int4, Target
from lrkit.export.weights.layer_recipe import Norm
from lrkit.export.weights.stored_integers import in_blocks, with_row
from lrkit.export.weights.streaming import stream_source
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.engines.onnxruntime.engine import optimizers_off
from tests.quantized import Base, Folder, gptq, write_gguf, write_quantized

ROWS, WIDTH, BLOCK = 24, 96, 32
Array = np.ndarray


def held(bits: int, zeros: bool, constants: bool) -> Quantized:
    rng, high = np.random.default_rng(bits), 1 << (bits - 1)
    blocks = ROWS, WIDTH // BLOCK
    return Quantized(
        rng.integers(-high, high, (*blocks, BLOCK)).astype(np.int8), rng.uniform(0.1, 1, blocks).astype(np.float32),
        bits, rng.integers(-high, high, blocks).astype(np.int8) if zeros else None,
        rng.normal(0, 3, blocks).astype(np.float32) if constants else None,
    )  # fmt: skip


def written(target: Target, made: Quantized) -> Any:
    """x (S, WIDTH), ids (S,) -> x times the matrix, rows of the same as a table."""
    writer = writer_for(target, lambda role: made.dequantize(), Norm("rms", 1e-6), made=lambda role: made)
    g = Graph(writer.floats)
    x, ids = g.input("x", ir.DataType.FLOAT, ("S", WIDTH)), g.input("ids", ir.DataType.INT64, ("S",))
    outputs = [
        g.typed(g.to_float32(value), ir.DataType.FLOAT, ("S", width))
        for value, width in ((writer.linear(g, g.to_floats(x), "0.out"), ROWS), (writer.embed(g, ids), WIDTH))
    ]
    model = g.model([x, ids], outputs, "product", {})
    raw = ir.serde.serialize_model(model).SerializeToString()
    off = list(optimizers_off(target.dialect, target.precision))
    return onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"], disabled_optimizers=off)


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize(
    ("bits", "zeros", "constants"),
    [(4, False, True), (4, True, False), (4, True, True), (8, False, True), (8, True, False)],
)
def test_a_product_is_that_of_the_values(dialect: str, bits: int, zeros: bool, constants: bool) -> None:
    """Constants of blocks are a small product of their own, with the sums of the blocks of x."""
    made = held(bits, zeros, constants)
    target = Target(dialect=dialect, precision="int4", int4=Int4(accuracy_level=0))  # pyright: ignore
    session = written(target, made)
    x = np.random.default_rng(1).normal(size=(3, WIDTH)).astype(np.float32)
    product, rows = session.run(None, {"x": x, "ids": np.array([0, 5, 23])})
    np.testing.assert_allclose(product, x @ made.dequantize().T, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(rows, made.dequantize()[[0, 5, 23]], rtol=1e-5, atol=1e-4)


def test_larger_blocks_are_cut_and_one_row_is_another() -> None:
    made = held(4, True, True)
    small = in_blocks(made, 16)
    assert small is not None and small.block == 16 and in_blocks(made, 8) is None
    np.testing.assert_array_equal(small.dequantize(), made.dequantize())
    row = np.random.default_rng(2).normal(size=WIDTH).astype(np.float32)
    other = with_row(small, 3, row).dequantize()
    assert np.abs(other[3] - row).max() < np.abs(row).max() / 7
    assert np.array_equal(np.delete(other, 3, 0), np.delete(made.dequantize(), 3, 0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    place: Path = tmp_path_factory.mktemp("folders")
    base = Base.of(resolve_checkpoint("tiny/base"), place)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}
    return {
        "gptq": write_quantized(base, place / "gptq", config, gptq, 32, symmetric=False),
        "q8_0": write_gguf(base, place / "q8_0", "Q8_0", embedding="Q8_0"),
    }


ROLES = ("0.qkv", "embedding", "head")


@pytest.mark.parametrize(
    ("name", "target", "kept"),
    [
        ("gptq", {"precision": "int4"}, ["0.qkv"]),
        ("gptq", {"precision": "int4-offsets"}, ["0.qkv"]),
        ("gptq", {"precision": "int8"}, []),
        ("gptq", {"precision": "int4", "int4": {"stored": "none"}}, []),
        ("gptq", {"precision": "int4", "int4": {"method": "search"}}, []),
        ("gptq", {"precision": "int4", "int4": {"matrices": {"*.qkv": "int8"}}}, []),
        ("gptq", {"precision": "fp32"}, []),
        ("q8_0", {"precision": "int4"}, ["embedding", "head"]),
        ("q8_0", {"precision": "int8"}, ["0.qkv", "embedding", "head"]),
        ("q8_0", {"precision": "int8", "int4": {"stored": "layers"}}, ["0.qkv"]),
        ("q8_0", {"precision": "int8", "dialect": "standard"}, ["0.qkv", "head"]),
    ],
)
def test_what_a_target_keeps(name: str, target: dict[str, Any], kept: list[str], folders: dict[str, Folder]) -> None:
    """What has integers and is rounded again is named in a note."""
    integers = KeptIntegers(stream_source(folders[name].path), Target.model_validate(target))
    found = {role: integers(role) for role in ROLES}
    assert [role for role, made in found.items() if made is not None] == kept
    has = ROLES if name == "q8_0" else ROLES[:1]
    again = [role for role in has if role not in kept] if target["precision"] != "fp32" else []
    assert integers.again == again and bool(integers.note) == bool(again) and integers("0.norm1") is None
    for role in again:
        assert role in integers.note or len(again) > 1


def test_tensorrt_gets_constants_in_place_of_zeros(folders: dict[str, Folder]) -> None:
    """And ONNX Runtime the zeros themselves."""
    source = stream_source(folders["gptq"].path)
    made = {dialect: KeptIntegers(source, Target.model_validate({"precision": "int4", "dialect": dialect}))("1.down")
            for dialect in ("ort", "standard")}  # fmt: skip
    ort, standard = made["ort"], made["standard"]
    assert ort is not None and ort.zeros is not None and ort.constants is None
    assert standard is not None and standard.zeros is None and standard.constants is not None
    np.testing.assert_allclose(ort.dequantize(), standard.dequantize(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ort.dequantize(), source.weight("1.down"), rtol=1e-5, atol=1e-6)
