"""Small ONNX graphs for the preflight's tests, written in ONNX's own text form: a graph that breaks one rule, and its
twin that does not.

Names declared between < and > after the outputs are constants; their content is made up: ones, and for names that begin
with `zero`, zeros. Four-bit constants hold ones too, so that a zero point is a real one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from lrkit.export.preflight.opening import CheckedGraph

FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)


@dataclass(frozen=True)
class Case:
    """One rule, broken and kept."""

    bad: str
    """The graph that breaks it: `(inputs) => (outputs) <constants> { nodes }`."""
    good: str
    """Its twin."""
    at: str
    """Name that the finding must have."""
    opset: int = 21
    good_opset: int | None = None
    """Opset of the twin, where that is what differs."""
    archs: tuple[str, ...] = ()
    """GPUs to check for."""
    good_archs: tuple[str, ...] = ()
    """GPUs for which the bad graph is fine, where that is what differs."""
    options: dict[str, Any] = field(default_factory=dict)
    """Values of the target file of the bad graph."""
    warns: str = ""
    """What TensorRT says while it parses or builds the bad graph, where it says anything."""
    crashes: bool = False
    """Whether the library takes the process with it: it is asked in one of its own."""
    others: tuple[str, ...] = ()
    """Rules that the bad graph cannot help breaking too."""


def make(text: str, opset: int = 21) -> onnx.ModelProto:
    """The model of a graph."""
    domains = [f'"" : {opset}', '"com.microsoft" : 1', '"trt" : 1']
    used = [domains[0], *(domain for domain in domains[1:] if domain.split('"')[1] + "." in text)]
    model = parser.parse_model(f"<ir_version: 10, opset_import: [{', '.join(used)}]>\ng {text}")
    _fill(model.graph)
    return model


def save(text: str, opset: int, file: Path) -> Path:
    """Writes the model of a graph."""
    file.write_bytes(make(text, opset).SerializeToString())
    return file


def checked(case: Case, file: Path) -> CheckedGraph:
    """The bad graph, to be checked."""
    return CheckedGraph(file.name, save(case.bad, case.opset, file), case.options)


def checked_twin(case: Case, file: Path) -> CheckedGraph:
    """The good graph, to be checked."""
    return CheckedGraph(file.name, save(case.good, case.good_opset or case.opset, file))


def _fill(graph: onnx.GraphProto) -> None:
    """Turns declared names that nothing makes into constants."""
    made = {name for node in graph.node for name in node.output}
    made |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for value in list(graph.value_info):
        if value.name not in made:
            graph.initializer.append(_constant(value.name, value.type.tensor_type))
            graph.value_info.remove(value)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _fill(attribute.g)


def _constant(name: str, kind: onnx.TypeProto.Tensor) -> onnx.TensorProto:
    sizes = [axis.dim_value for axis in kind.shape.dim]
    count, zero = int(np.prod(sizes, dtype=np.int64)), name.startswith("zero")
    if kind.elem_type in FOUR_BITS:
        packed = bytes([0x00 if zero else 0x11]) * ((count + 1) // 2)
        return onnx.TensorProto(name=name, data_type=kind.elem_type, dims=sizes, raw_data=packed)
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return numpy_helper.from_array(np.full(sizes, 0 if zero else 1).astype(dtype), name)
