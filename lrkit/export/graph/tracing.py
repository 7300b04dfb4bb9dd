"""A torch module inside a program: traced by torch.onnx once, then grafted into a graph.

Place in the pipeline: for the tower modules of families whose towers run as they are instead of being written node by
node.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from lrkit.errors import ExportError
from lrkit.export.graph.nodes import OPSET, Graph, Value
from lrkit.export.graph.writer import Writer

OWN = "lrkit"
"""Domain of the node that a tower's trace may hold instead of attention: see `Writer.attention_by_picture`."""


def traced(module: nn.Module, example: Mapping[str, Tensor], free: Mapping[int, Any]) -> ir.Graph:
    """The module as torch.onnx sees it. `example` are its inputs by name, in order; `free` are the axes of each of
    them that stay free, as torch.export wants them: axis -> `torch.export.Dim`.

    Raises:
        ExportError: torch.onnx could not trace it.
    """
    try:
        return exported(module.eval(), example, free)
    except Exception as error:  # torch.onnx raises a different class at every stage
        raise ExportError(
            f"torch.onnx could not trace the vision tower ({str(error).splitlines()[0]}); export with the torch "
            "release that the checkpoint was trained with"
        ) from error


def exported(module: nn.Module, example: Mapping[str, Tensor], free: Mapping[int, Any]) -> ir.Graph:
    """What torch.onnx makes of it, by `traced`'s arguments; nearly all the time that tracing takes."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(example.values()),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(free,) * len(example),
            input_names=list(example),
            verbose=False,
        )
    assert program is not None
    return _let_go(program.model.graph)


def _let_go(made: ir.Graph) -> ir.Graph:
    """A copy; onnxscript's rewrite rules, which live as long as Python, hold on to the last graph they saw, and so
    would to all weights of the tower."""
    graph = made.clone()
    for value in made.initializers.values():
        value.const_value = None
    return graph


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """torch.onnx talks about packages that are not installed and steps that it takes; none of it is about this
    model."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)


def graft(g: Graph, dialect: Writer, made: ir.Graph, given: Sequence[Value]) -> Value:
    """Copies the traced nodes into `g`: inputs replaced by `given`, matrices through the dialect, so that they may
    become integers. Returns the first output."""
    known: dict[Value, Value] = dict(zip(made.inputs, given, strict=True))
    arrays = {value: _array(value) for value in made.initializers.values()}
    arrays |= {
        node.outputs[0]: node.attributes["value"].as_tensor().numpy() for node in made if node.op_type == "Constant"
    }
    scheme = dialect.target.scheme_of("vision")
    for node in made:
        if node.op_type == "Constant":
            continue
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        # The first matrix reads bytes and stays float: it is small, and what it takes in is no activation.
        inner = node.op_type == "Gemm" and node.inputs[0] not in made.inputs
        if inner and weight in arrays and scheme is not None and min(arrays[weight].shape) >= scheme.least:
            assert weight is not None and node.inputs[0] is not None
            role = f"vision.{weight.name}"
            matrix = arrays[weight] if node.attributes.get_int("transB", 0) else arrays[weight].T
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            x = _operand(g, dialect, node.inputs[0], known, arrays)
            bias = bias and _operand(g, dialect, bias, known, arrays)
            outputs = [dialect.linear(g, x, role, bias, part="vision", given=matrix)]
        elif node.domain == OWN:
            query, key, value, picture = (_operand(g, dialect, v, known, arrays) for v in node.inputs if v is not None)
            scale, heads = node.attributes["scale"].as_float(), node.attributes["num_heads"].as_int()
            outputs = [dialect.attention_by_picture(g, (query, key, value), picture, heads, scale)]
        else:
            inputs = [None if v is None else _operand(g, dialect, v, known, arrays) for v in node.inputs]
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            outputs = g.ops(node.op_type, *inputs, outputs=len(node.outputs), domain=node.domain, **attributes)
        known |= zip(node.outputs, outputs, strict=True)
    return known[made.outputs[0]]


def _array(value: Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _operand(
    g: Graph, dialect: Writer, value: Value, known: dict[Value, Value], arrays: dict[Value, np.ndarray]
) -> Value:
    if value not in known:
        array = arrays[value]
        if array.size <= 16:
            known[value] = g.value(array)
        else:
            known[value] = dialect.store.array(g, f"vision.{value.name}", array, "vision")
    return known[value]
