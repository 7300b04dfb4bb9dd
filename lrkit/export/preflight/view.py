"""An ONNX program as the matchers read it: every node with the loops and branches around it, and what is constant.

Place in the pipeline: findings.py makes one `View` per program. The matchers of operators.py, loops.py and packed.py
look for one thing each in it. Nothing here knows a target.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

LOOPS = ("Loop", "Scan")
SUB_BYTE = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT4E2M1)
QUANTIZED = (*SUB_BYTE, ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)
"""Types that an engine holds only in front of a DequantizeLinear."""
MAX_READ_BYTES = 1 << 26
"""Constants above this are never opened: weights of a large model stay on disk."""


@dataclass(frozen=True)
class Site:
    """A node, and where it stands."""

    node: ir.Node
    around: tuple[tuple[ir.Node, str], ...] = ()
    """(Loop, Scan or If, name of its body or branch), outermost first."""

    @property
    def name(self) -> str:
        """`think/Loop > think/layer0/MatMul`: the nodes around it, then itself."""
        outer = [f"{label(node)}.{part}" if node.op_type == "If" else label(node) for node, part in self.around]
        return " > ".join([*outer, label(self.node)])

    @property
    def in_loop(self) -> bool:
        """Whether an iteration runs it."""
        return any(node.op_type in LOOPS for node, _ in self.around)

    @property
    def branches(self) -> tuple[tuple[int, str], ...]:
        """The branches of Ifs that it stands in."""
        return tuple((id(node), part) for node, part in self.around if node.op_type == "If")

    def is_at(self, where: str) -> bool:
        """Whether a rule of that `where` looks at it."""
        return {
            "anywhere": True,
            "top": not self.around,
            "loop": self.in_loop,
            "branch": bool(self.branches),
            "body": bool(self.around),
        }[where]


@dataclass(frozen=True)
class Hit:
    """One place where a matcher found what it looks for."""

    name: str
    """Full name of the node, or of an input or constant of the program."""
    operator: str = ""
    """Its operator; empty for what is no node."""
    detail: str = ""
    """What was seen there, in a few words."""
    site: Site | None = None
    """None for what is no node."""

    @classmethod
    def at(cls, site: Site, detail: str = "") -> "Hit":
        """At a node."""
        return cls(site.name, operator_of(site.node), detail, site)


Hits = Iterator[Hit]


class View:
    """All nodes of a model, those of bodies, branches and functions too."""

    def __init__(self, model: ir.Model, target: Mapping[str, Any] | None = None) -> None:
        """`target` is what the program is exported for, as plain values of a target file."""
        self.model, self.target = model, dict(target or {})
        self.functions = {f"{f.domain}::{f.name}" for f in model.functions.values()}
        self.sites = list(_sites(model.graph))
        for function in model.functions.values():
            self.sites += _sites(function.graph)
        self._site_of = {site.node: site for site in self.sites}
        self._order = {site.node: number for number, site in enumerate(self.sites)}
        self._foldable: dict[ir.Value, bool] = {}

    def of(self, *operators: str) -> Iterator[Site]:
        """Nodes of these operators, given as NAME or DOMAIN::NAME."""
        return (site for site in self.sites if operator_of(site.node) in operators)

    def constants(self) -> Iterator[ir.Value]:
        """Initializers of all graphs."""
        seen: set[ir.Value] = set()
        for graph in [self.model.graph, *self.bodies()]:
            for value in graph.initializers.values():
                if value not in seen:
                    seen.add(value)
                    yield value

    def bodies(self) -> Iterator[ir.Graph]:
        """Graphs inside nodes."""
        for site in self.sites:
            for _, graph in graphs_of(site.node):
                yield graph

    def users(self, value: ir.Value) -> list[Site]:
        """Nodes that read a value, in the order of the program."""
        readers = dict.fromkeys(use.node for use in value.uses())
        return sorted((self._site_of[node] for node in readers), key=lambda site: self._order[site.node])

    def follows(self, node: ir.Node, earlier: ir.Node) -> bool:
        """Whether what a node reads depends on another node of the same graph, also by what its neighbours' bodies
        read."""
        seen: set[ir.Node] = set()
        waiting = [node]
        while waiting:
            current = waiting.pop()
            inner = [site.node for site in self.sites if any(around is current for around, _ in site.around)]
            for reader in (current, *inner):
                for value in reader.inputs:
                    maker = value.producer() if value is not None else None
                    if maker is earlier:
                        return True
                    if maker is not None and maker not in seen:
                        seen.add(maker)
                        waiting.append(maker)
        return False

    def foldable(self, value: ir.Value | None) -> bool:
        """Whether a value follows from constants and fixed shapes alone."""
        waiting = [] if value is None else [value]
        while waiting:  # no recursion: a program may be a chain of thousands of nodes
            current = waiting[-1]
            needed = _needed(current)
            unknown = [] if needed is None else [one for one in needed if one not in self._foldable]
            self._foldable.setdefault(current, False)  # what needs itself never folds
            if unknown:
                waiting += unknown
            else:
                waiting.pop()
                self._foldable[current] = needed is not None and all(self._foldable[one] for one in needed)
        return value is not None and self._foldable[value]


def _needed(value: ir.Value) -> list[ir.Value] | None:
    """What a value is computed from, as far as that is not known from the program itself; None: it varies."""
    if value.const_value is not None:
        return []
    node = value.producer()
    if node is None or node.op_type.startswith("Random") or any(True for _ in graphs_of(node)):
        return None
    if node.op_type in ("Shape", "Size"):
        sizes = fixed_sizes(given(node, 0))
        return None if sizes is None or None in sizes else []
    return [one for one in node.inputs if one is not None]


def _sites(graph: Any, around: tuple[tuple[ir.Node, str], ...] = ()) -> Iterator[Site]:
    for node in graph:
        yield Site(node, around)
        for part, inner in graphs_of(node):
            yield from _sites(inner, (*around, (node, part)))


def graphs_of(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """(attribute, graph) of the bodies and branches inside a node."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name.removesuffix("_branch"), attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for number, graph in enumerate(attribute.as_graphs()):
                yield f"{name}[{number}]", graph


def operator_of(node: ir.Node) -> str:
    """`NAME`, or `DOMAIN::NAME` outside ONNX's own domain."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def label(node: ir.Node) -> str:
    """The node's name; one without is named by its operator and first output."""
    return node.name or f"{node.op_type} -> {node.outputs[0].name if node.outputs else ''}"


def attribute(node: ir.Node, name: str) -> Any:
    """Plain value of an attribute; None where it is absent or belongs to a function's caller."""
    found = node.attributes.get(name)
    if found is None or found.is_ref():
        return None
    return found.value


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An input; None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def behind(value: ir.Value | None, *through: str) -> ir.Value | None:
    """The value that `value` is a copy of, followed through operators with one data input."""
    while value is not None and (node := value.producer()) is not None and node.op_type in through:
        value = given(node, 0)
    return value


def numbers(value: ir.Value | None) -> np.ndarray | None:
    """The elements of a constant, also of one behind Identity, Cast or Constant; None if it is none, or huge."""
    found = behind(value, "Identity", "Cast")
    tensor = None if found is None else ir.convenience.get_const_tensor(found)
    return None if tensor is None or tensor.nbytes > MAX_READ_BYTES else tensor.numpy()


def fixed_sizes(value: ir.Value | None) -> list[int | None] | None:
    """Shape with None for lengths that vary; None where even the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]
