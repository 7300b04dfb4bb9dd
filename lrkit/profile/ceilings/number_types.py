"""What this device multiplies in each number type that it has, whatever the model computes in.

Place in the pipeline: rates.py -> `measure_types` -> roofline.py, which says of every phase what share of the fastest
float type it reached. A float32 program on a CPU with AMX may be at its own ceiling and at a seventh of the machine's.

float32 and bfloat16 are multiplied by torch, or float32 by numpy where there is no torch. int8 is bytes times bytes by
ONNX Runtime, as the scheme w8a8 does; its graph is built with the packages of the extra `export`. What cannot be
measured here is left out.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from lrkit.cores import usable_cores
from lrkit.gpus import torch_can_use
from lrkit.provenance import installed_version

ROWS, WIDTH, INNER = 512, 1280, 2560
"""A picture's patches through a matrix of a published tower."""
_SECONDS = 0.3
FLOATS = ("float32", "bfloat16")
"""Types that a model can be computed in without calibration; int8 is told beside them."""


@dataclass(frozen=True)
class TypeRate:
    """One number type."""

    name: str
    """float32, bfloat16 or int8."""
    flops_per_sec: float
    """Of the fastest try."""
    by: str
    """What multiplied."""


@cache
def measure_types(place: str, threads: int | None = None) -> tuple[TypeRate, ...]:
    """The rates of a CPU with so many threads (None: all), or of a GPU, which has no int8 here. Measured once."""
    if place != "cpu":
        return tuple(_by_torch("cuda", None)) if torch_can_use() else ()
    count = threads or usable_cores()
    found = list(_by_torch("cpu", count)) if installed_version("torch") else [_by_numpy()]
    return (*found, *_by_onnxruntime(count))


def fastest_float(types: tuple[TypeRate, ...]) -> TypeRate | None:
    """The best that the machine has for a model as it is; None where nothing was measured."""
    return max((one for one in types if one.name in FLOATS), key=lambda one: one.flops_per_sec, default=None)


def _by_torch(device: str, threads: int | None) -> Iterator[TypeRate]:
    import torch

    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        for name in FLOATS:
            x = torch.ones(ROWS, WIDTH, dtype=getattr(torch, name), device=device)
            weight = torch.ones(INNER, WIDTH, dtype=getattr(torch, name), device=device)

            def work(x: Any = x, weight: Any = weight) -> None:
                torch.nn.functional.linear(x, weight)
                if device != "cpu":
                    torch.cuda.synchronize()

            with torch.inference_mode():
                yield TypeRate(name, _fastest(work), f"torch on {device}")
    finally:
        torch.set_num_threads(before)


def _by_numpy() -> TypeRate:
    x, weight = np.ones((ROWS, WIDTH), np.float32), np.ones((WIDTH, INNER), np.float32)
    return TypeRate("float32", _fastest(lambda: x @ weight), "numpy")


def _by_onnxruntime(threads: int) -> Iterator[TypeRate]:
    try:
        import onnx_ir as ir
        import onnxruntime
    except ImportError:
        return
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = ir.serde.serialize_model(_bytes_times_bytes()).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)
    by = "onnxruntime, bytes times bytes, activations rounded on the way"
    yield TypeRate("int8", _fastest(lambda: session.run(["y"], {"x": x})), by)


def _bytes_times_bytes() -> Any:
    import onnx_ir as ir

    weights = {
        "w": np.random.default_rng(1).integers(-64, 65, (WIDTH, INNER), dtype=np.int8),
        "s": np.full(INNER, 0.01, np.float32),
    }
    held = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in weights.items()]
    for value in held:
        assert value.const_value is not None
        value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)  # pyright: ignore
    x, y = (
        ir.Value(name=name, shape=ir.Shape((ROWS, width)), type=ir.TensorType(ir.DataType.FLOAT))
        for name, width in (("x", WIDTH), ("y", INNER))
    )
    node = ir.Node("com.microsoft", "DynamicQuantizeMatMul", [x, *held], outputs=[y])
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph([x], [y], nodes=[node], initializers=held, opset_imports=opsets, name="rate")
    return ir.Model(graph, ir_version=10)


def _fastest(work: Callable[[], object]) -> float:
    work()
    best, ends = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < ends:
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return 2 * ROWS * WIDTH * INNER / best
