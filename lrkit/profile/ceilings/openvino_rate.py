"""How fast OpenVINO multiplies in the number type that a bundle is run in.

Place in the pipeline: rates.py -> `openvino_flops` -> the arithmetic ceiling of a bundle on OpenVINO on a CPU. With
bfloat16 and AMX it is several times that of float32, which numpy could measure.
"""

import time

import numpy as np

from lrkit.profile.ceilings.number_types import INNER, ROWS, WIDTH
from lrkit.runtime.engines.openvino.library import core, load_library

_SECONDS = 0.4


def openvino_flops(products: str, threads: int) -> tuple[float, str]:
    """(operations per second of the fastest try, how) of a float product; `products` is f32, bf16 or f16."""
    openvino = load_library()
    op = openvino.opset13
    x = op.parameter([ROWS, WIDTH], np.float32, name="x")
    weight = op.constant(np.random.default_rng(0).standard_normal((WIDTH, INNER), dtype=np.float32))
    model = openvino.Model([op.matmul(x, weight, False, False)], [x], "rate")
    given = {"INFERENCE_PRECISION_HINT": products, "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    request = core().compile_model(model, "CPU", given).create_infer_request()
    request.set_input_tensor(0, openvino.Tensor(np.ones((ROWS, WIDTH), np.float32)))
    request.infer()
    best, ends = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < ends:
        started = time.perf_counter()
        request.infer()
        best = min(best, time.perf_counter() - started)
    return 2 * ROWS * WIDTH * INNER / best, f"openvino in {products}"
