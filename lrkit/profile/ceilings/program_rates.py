"""How fast ONNX Runtime multiplies the way a program does: weights as integers, activations rounded to int8 or not.

Place in the pipeline: rates.py -> `program_flops` -> the arithmetic ceiling of a bundle on a CPU. A float32
product, which numpy can measure, is no ceiling for them, because int8 products are faster. The graph is built with the
packages of the extra `export`. Without them the rate is unknown here, and rates.py takes numpy's.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from lrkit.contract.bundle.manifest import ProgramEntry
from lrkit.contract.schemes import chosen, scheme_named
from lrkit.profile.ceilings.number_types import measure_types

ROWS, WIDTH = 256, 1024
"""A prompt's worth of tokens through a square matrix."""
_SECONDS = 0.4


def program_flops(
    entry: ProgramEntry, target: Mapping[str, Any], threads: int | None, name: str
) -> tuple[float, str] | None:
    """(operations per second of the fastest try, how) of a program's matrices that are held by the scheme `name`, by
    its bundle's target; None where it cannot be measured or the program multiplies them as floats."""
    scheme = scheme_named(name)
    if scheme.encoding(entry.dialect) == "MatMulIntegerToFloat":
        found = [one for one in measure_types("cpu", threads) if one.name == "int8"]
        return (found[0].flops_per_sec, found[0].by) if found else None
    if scheme.encoding(entry.dialect) != "MatMulNBits":
        return None
    try:
        import onnx_ir as ir
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    block = chosen(target, scheme, "block") if entry.precision == name else scheme.blocks[0]
    model = ir.serde.serialize_model(_graph(scheme.bits, block, entry.accuracy_level or 0)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)}
    session.run(["y"], feed)
    best, ends = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < ends:
        started = time.perf_counter()
        session.run(["y"], feed)
        best = min(best, time.perf_counter() - started)
    rate = 2 * ROWS * WIDTH * WIDTH / best
    return rate, f"onnxruntime MatMulNBits, block {block}, accuracy level {entry.accuracy_level}"


def _graph(bits: int, block: int, accuracy_level: int) -> Any:
    import onnx_ir as ir

    random, blocks = np.random.default_rng(1), WIDTH // block
    weights = {
        "b": random.integers(0, 256, (WIDTH, blocks, block * bits // 8), dtype=np.uint8),
        "scales": np.full(WIDTH * blocks, 0.01, np.float32),
    }
    x = ir.Value(name="x", shape=ir.Shape((ROWS, WIDTH)), type=ir.TensorType(ir.DataType.FLOAT))
    held = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in weights.items()]
    for value in held:
        assert value.const_value is not None
        value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)  # pyright: ignore
    attributes = [
        ir.AttrInt64(name, number)
        for name, number in (
            ("K", WIDTH), ("N", WIDTH), ("bits", bits), ("block_size", block), ("accuracy_level", accuracy_level),
        )
    ]  # fmt: skip
    y = ir.Value(name="y", shape=ir.Shape((ROWS, WIDTH)), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("com.microsoft", "MatMulNBits", [x, *held], attributes, outputs=[y])
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph([x], [y], nodes=[node], initializers=held, opset_imports=opsets, name="rate")
    return ir.Model(graph, ir_version=10)
