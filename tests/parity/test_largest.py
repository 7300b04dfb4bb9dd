"""The largest of a large vocabulary is looked for in two steps, and is the one that ArgMax finds."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lrkit.export.graph.dialects import writer_for
from lrkit.export.graph.nodes import Graph
from lrkit.export.targets.target import Target
from lrkit.export.weights.layer_recipe import Norm


@pytest.mark.parametrize("count", [151_936, 49_280, 65_536, 128_257, 200])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_is_the_one_that_argmax_finds(count: int, precision: str) -> None:
    write = writer_for(Target(precision=precision), lambda _: np.zeros(0, np.float32), Norm("rms", 1e-6))
    g = Graph(write.floats)
    given = g.input("x", write.floats, (1, count))
    found = g.typed(write.largest(g, given, count), ir.DataType.INT64, (1,), "y")
    kinds = [node.op_type for node in g.nodes]
    assert ("ReduceMax" in kinds) == (count > 200 and count != 128_257), "no row divides a prime"
    proto: Any = ir.to_proto(g.model([given], [found], "largest", {}))
    session: Any = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(count)
    for case in range(6):
        x = draw.standard_normal((1, count)).astype(write.floats.numpy())
        if case == 1:  # equal ones: the first counts
            x[0, draw.integers(0, count, 5)] = 9
        if case == 2:
            x[:] = -1e30 if precision == "fp32" else -3e4
        if case == 3:
            x[0, -1] = 50
        if case == 4:
            x[0, 0] = 50
        assert session.run(["y"], {"x": x})[0].tolist() == [int(x[0].argmax())], case
