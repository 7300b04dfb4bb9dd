"""A small ONNX graph builder: operators as method calls, readable names, constants once, loops with named state.

Place in the pipeline: every file of lrkit/export that writes nodes writes them through `Graph`. Nothing here knows
what is built.

Constants and weights always live in the outermost graph: a loop body refers to them by name, so that a weight used by
the prompt, the latent loop and the speech loop is stored once.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

OPSET = 21
"""The widest reach: INT4 blocks need 21, and no newer operator is used."""
CONTRIB = "com.microsoft"

Value = ir.Value
Operand = ir.Value | np.ndarray | int | float | bool | list[int] | None


@dataclass(frozen=True)
class State:
    """One value that a loop carries."""

    initial: Value
    """Before the first iteration."""
    dtype: ir.DataType
    """Its type; it never changes."""
    shape: tuple[int | str, ...]
    """Its shape; it never changes either."""


Carried = dict[str, Value]
Kind = tuple[ir.DataType, tuple[int | str, ...]]
"""Type and shape of a value."""
Body = Callable[["Graph", Value, Carried], tuple[Value, Carried]]
"""(graph of the body, iteration number, state) -> (go on, new state). Never read the loop's own condition inside."""


class _Root:
    """What all nested graphs share: initializers, and names already taken."""

    def __init__(self) -> None:
        self.initializers: dict[str, Value] = {}
        self.constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self.taken: dict[str, int] = {}
        self.levels = 0

    def unique(self, name: str) -> str:
        count = self.taken.get(name, 0)
        self.taken[name] = count + 1
        return name if count == 0 else f"{name}.{count}"


class Graph:
    """Nodes of one graph level; `loop` opens a level below."""

    def __init__(self, floats: ir.DataType = ir.DataType.FLOAT, root: _Root | None = None, path: str = "") -> None:
        """`floats` is the type of the activations: bare Python floats become constants of it."""
        self.floats = floats
        self.nodes: list[ir.Node] = []
        self._num_early = 0
        self._root = root or _Root()
        self._path = path
        self.level = self._root.levels
        """0 for the outermost graph, a number of its own for each loop body."""
        self._root.levels += 1

    @contextmanager
    def scope(self, name: str) -> Generator[None]:
        """Nodes written inside are named `.../name/...`."""
        before, self._path = self._path, f"{self._path}/{name}" if self._path else name
        try:
            yield
        finally:
            self._path = before

    def op(self, op_type: str, *inputs: Operand, domain: str = "", **attributes: Any) -> Value:
        """One node with one output."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(self, op_type: str, *inputs: Operand, outputs: int, domain: str = "", **attributes: Any) -> list[Value]:
        """One node with several outputs. Arrays, numbers and lists of integers among `inputs` become constants."""
        name = self._root.unique(f"{self._path}/{op_type}" if self._path else op_type)
        made = [ir.Value(name=name if i == 0 else f"{name}:{i}") for i in range(outputs)]
        operands = [None if value is None else self.value(value) for value in inputs]
        while operands and operands[-1] is None:  # TensorRT refuses an absent input that is written down
            operands.pop()
        attributes = {key: value for key, value in attributes.items() if value is not None}
        attrs = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node(domain, op_type, operands, attrs, outputs=made, name=name))
        return made

    def early(self, op_type: str, *inputs: Operand, **attributes: Any) -> Value:
        """One node with one output, in front of all others of its level; it reads weights alone.

        ONNX Runtime 1.32 begins with the input of a node that was written last: where a weight is unpacked by a node
        behind the one that makes the other operand, it is unpacked before that is begun, and so are the weights of all
        layers, whose float values are then in memory together, once for each loop.
        """
        made = self.op(op_type, *inputs, **attributes)
        self.nodes.insert(self._num_early, self.nodes.pop())
        self._num_early += 1
        return made

    def value(self, given: Operand) -> Value:
        """The value itself, or a shared constant: float -> activations' type, int and list -> int64, bool -> bool."""
        if isinstance(given, ir.Value):
            return given
        if isinstance(given, float):
            given = np.array(given, self.floats.numpy())
        array = np.asarray(given)
        if array.dtype == np.int32 or (array.dtype.kind == "i" and not isinstance(given, np.ndarray)):
            array = array.astype(np.int64)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._root.constants:
            label = "x".join(map(str, array.shape)) or str(array)
            self._root.constants[key] = self.weight(f"const/{array.dtype}/{label}", ir.tensor(array))
        return self._root.constants[key]

    def weight(self, name: str, tensor: ir.TensorProtocol | np.ndarray) -> Value:
        """An initializer of the outermost graph; the caller asks once per name."""
        unique = self._root.unique(name)
        stored = ir.tensor(tensor, name=unique) if isinstance(tensor, np.ndarray) else tensor
        stored.name = unique
        shape = ir.Shape([int(str(size)) for size in stored.shape])
        value = ir.Value(name=unique, type=ir.TensorType(stored.dtype), shape=shape, const_value=stored)
        self._root.initializers[unique] = value
        return value

    def input(self, name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> Value:
        """A typed value that someone else fills."""
        return ir.Value(
            name=self._root.unique(name), type=ir.TensorType(dtype), shape=ir.Shape(shape)
        )  # fmt: skip

    def default(self, given: Value) -> None:
        """Lets callers of the graph leave an input of numbers out: then its free axes have length 0, and what is left
        is 0. TensorRT and OpenVINO take such an input for a constant."""
        assert given.shape is not None and given.dtype is not None and given.name is not None
        sizes = [size if isinstance(size, int) else 0 for size in given.shape]
        given.const_value = ir.tensor(np.zeros(sizes, given.dtype.numpy()), name=given.name)
        self._root.initializers[given.name] = given

    def cast(self, value: Value, dtype: ir.DataType) -> Value:
        """`value` as another type."""
        return self.op("Cast", value, to=int(dtype))

    def to_floats(self, value: Value) -> Value:
        """float32 -> the activations' type; nothing where that is float32 itself."""
        return value if self.floats == ir.DataType.FLOAT else self.cast(value, self.floats)

    def to_float32(self, value: Value) -> Value:
        """The activations' type -> float32; nothing where they are float32 anyway."""
        return value if self.floats == ir.DataType.FLOAT else self.cast(value, ir.DataType.FLOAT)

    def shape_of(self, value: Value, axis: int) -> Value:
        """Length of one axis, int64 [1]."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def loop(
        self, trip: Value, go: Value, state: Mapping[str, State], body: Body, rows: Mapping[str, Kind] | None = None
    ) -> Carried:
        """A Loop with at most `trip` iterations, left early when the body says so. Returns the final state, and of each
        of `rows` what the iterations made, one behind the other (TensorRT refuses them)."""
        inner = Graph(self.floats, self._root, self._path)
        iteration = inner.input(f"{self._path}/iteration", ir.DataType.INT64, ())
        condition = inner.input(f"{self._path}/condition", ir.DataType.BOOL, ())
        held = {name: inner.input(f"{self._path}/{name}", s.dtype, s.shape) for name, s in state.items()}
        going, new = body(inner, iteration, dict(held))
        kinds = {name: (s.dtype, s.shape) for name, s in state.items()} | dict(rows or {})
        assert new.keys() == kinds.keys(), f"the loop {self._path} must return {sorted(kinds)}, not {sorted(new)}"
        outputs = [inner.typed(going, ir.DataType.BOOL, ())]
        outputs += [inner.typed(new[name], *kind) for name, kind in kinds.items()]
        graph = ir.Graph([iteration, condition, *held.values()], outputs, nodes=inner.nodes, name=f"{self._path}/body")
        made = self.ops("Loop", trip, go, *[s.initial for s in state.values()], outputs=len(kinds), body=graph)
        return dict(zip(kinds, made, strict=True))

    def either(
        self, condition: Value, then: Callable[["Graph"], Value], other: Callable[["Graph"], Value], kind: Kind
    ) -> Value:
        """What one of two pieces of graph makes, of that type and shape."""
        made: dict[str, ir.Graph] = {}
        for name, write in (("then_branch", then), ("else_branch", other)):
            inner = Graph(self.floats, self._root, self._path)
            output = inner.typed(write(inner), *kind)
            made[name] = ir.Graph([], [output], nodes=inner.nodes, name=f"{self._path}/{name}")
        return self.op("If", condition, then_branch=made["then_branch"], else_branch=made["else_branch"])

    def typed(self, value: Value, dtype: ir.DataType, shape: tuple[int | str, ...], name: str | None = None) -> Value:
        """`value` as an output of this graph: through Identity where it was not made here, or not under this name."""
        if value.producer() not in self.nodes or value.type is not None or name is not None:
            value = self.op("Identity", value)
        if name is not None:
            value.name = name
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        return value

    def model(self, inputs: list[Value], outputs: list[Value], name: str, metadata: dict[str, str]) -> ir.Model:
        """The finished model; unused weights are left out."""
        used = {v.name for node in _all_nodes(self.nodes) for v in node.inputs if v is not None}
        kept = [value for key, value in self._root.initializers.items() if key in used]
        graph = ir.Graph(
            inputs, outputs, nodes=self.nodes, initializers=kept, opset_imports={"": OPSET, CONTRIB: 1}, name=name
        )  # fmt: skip
        return ir.Model(graph, ir_version=10, producer_name="lrkit", metadata_props=metadata)


def _all_nodes(nodes: list[ir.Node]) -> Iterator[ir.Node]:
    for node in nodes:
        yield node
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _all_nodes(list(attribute.as_graph()))
