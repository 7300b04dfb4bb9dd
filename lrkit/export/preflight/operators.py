"""Matchers that look at one node, constant or input at a time: operators, attributes, inputs, types.

Place in the pipeline: findings.py calls them by the name that a rule of `export/rules/*.yaml` gives, with the rule's
values as keywords. Each is a pure function (view, values) -> places. Operators are given as NAME or DOMAIN::NAME,
types by ONNX's names.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lrkit.export.preflight.rules import load_operators
from lrkit.export.preflight.view import Hit, Hits, Site, View, attribute, fixed_sizes, given, numbers, operator_of


def operator(view: View, *, operators: Sequence[str]) -> Hits:
    """Nodes of these operators."""
    for site in view.of(*operators):
        yield Hit.at(site)


def operator_missing(view: View, *, table: str, besides: Sequence[str]) -> Hits:
    """Nodes whose operator is not in a table nor in `besides`, nor written out as a function of the model."""
    known = load_operators(table)
    for site in view.sites:
        name = operator_of(site.node)
        if name in (*besides, *view.functions, *known.contributed) or known.types_of(name) is not None:
            continue
        listed = name in known.unsupported
        yield Hit.at(site, "listed as not supported" if listed else "not in the table of supported operators")


def operator_since(view: View, *, table: str, releases: str) -> Hits:
    """Nodes whose operator came with one of these releases: "11" or "10." is what the release begins with."""
    since = load_operators(table).since
    for site in view.of(*since):
        release = since[operator_of(site.node)]
        if release.startswith(releases):
            yield Hit.at(site, f"since {release}")


def operator_floor(view: View, *, floors: dict[str, str], opset_floors: dict[str, dict[str, str]]) -> Hits:
    """Nodes that need a release: by operator, or by operator from an opset on."""
    opset = view.model.opset_imports.get("", 0)
    for site in view.sites:
        name = operator_of(site.node)
        release = floors.get(name, "")
        for lowest, later in opset_floors.get(name, {}).items():
            release = later if opset >= int(lowest) else release
        if release:
            yield Hit.at(site, f"needs {release}")


def foreign_domain(view: View, *, domains: Sequence[str]) -> Hits:
    """Nodes of operators outside these domains that are no function of the model."""
    for site in view.sites:
        domain = "" if site.node.domain == "ai.onnx" else site.node.domain
        if domain not in domains and operator_of(site.node) not in view.functions:
            yield Hit.at(site, f"domain {domain}")


def operator_type(view: View, *, table: str, types: Sequence[str]) -> Hits:
    """Nodes whose first input is of one of `types`, which the table does not list for the operator."""
    known = load_operators(table)
    for site in view.sites:
        first = given(site.node, 0)
        allowed = known.types_of(operator_of(site.node))
        if first is None or first.dtype is None or allowed is None or site.node.op_type in ("Loop", "If", "Scan"):
            continue
        if first.dtype.name in types and first.dtype.name not in allowed:
            yield Hit.at(site, f"on {first.dtype.name}, not one of {', '.join(sorted(allowed))}")


def attribute_value(
    view: View, *, operators: Sequence[str], names: Sequence[str], allowed: Sequence[object] = ()
) -> Hits:
    """Nodes with one of these attributes whose value is not one of `allowed`; a list is where all its elements are."""
    for site in view.of(*operators):
        for name in names:
            value = attribute(site.node, name)
            elements = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            if value is not None and any(item not in allowed for item in elements):
                yield Hit.at(site, f"{name} = {value if isinstance(value, str) else elements}")


def attribute_missing(view: View, *, operators: Sequence[str], name: str) -> Hits:
    """Nodes that leave an attribute to its default."""
    for site in view.of(*operators):
        if attribute(site.node, name) is None:
            yield Hit.at(site, f"no {name}")


def input_given(view: View, *, operators: Sequence[str], indexes: Sequence[int]) -> Hits:
    """Nodes with one of these optional inputs."""
    for site in view.of(*operators):
        for index in indexes:
            if (value := given(site.node, index)) is not None:
                yield Hit.at(site, f"input {index} is {value.name}")


def input_twice(view: View, *, operators: Sequence[str], indexes: Sequence[int]) -> Hits:
    """Nodes that are given one value for several of these inputs."""
    for site in view.of(*operators):
        values = [value for index in indexes if (value := given(site.node, index)) is not None]
        if len(set(values)) < len(values):
            yield Hit.at(site, f"inputs {' and '.join(map(str, indexes))} are {values[0].name}")


def output_used(view: View, *, operators: Sequence[str], first: int) -> Hits:
    """Nodes with an output from number `first` on."""
    for site in view.of(*operators):
        named = [value.name for value in site.node.outputs[first:] if value.name]
        if named:
            yield Hit.at(site, f"output {', '.join(map(str, named))}")


def input_varies(view: View, *, operators: Sequence[str], index: int, folded: bool) -> Hits:
    """Nodes with an input that is no constant; `folded`: one that follows from constants will do."""
    for site in view.of(*operators):
        value = given(site.node, index)
        if value is None or numbers(value) is not None or (folded and view.foldable(value)):
            continue
        yield Hit.at(site, f"input {index} is {value.name}")


def constant_above(view: View, *, operators: Sequence[str], index: int, limit: float) -> Hits:
    """Nodes with a constant input above a limit."""
    for site in view.of(*operators):
        values = numbers(given(site.node, index))
        if values is not None and values.size and float(np.max(values)) > limit:
            yield Hit.at(site, f"input {index} is {np.max(values)}, above {limit:g}")


def input_type(view: View, *, operators: Sequence[str], index: int, types: Sequence[str]) -> Hits:
    """Nodes with an input of one of these types."""
    for site in view.of(*operators):
        value = given(site.node, index)
        if value is not None and value.dtype is not None and value.dtype.name in types:
            yield Hit.at(site, f"input {index} is {value.dtype.name}")


def input_length(view: View, *, operators: Sequence[str], index: int, axis: int, length: int) -> Hits:
    """Nodes with an input whose axis has exactly that length."""
    for site in view.of(*operators):
        sizes = fixed_sizes(given(site.node, index))
        if sizes and -len(sizes) <= axis < len(sizes) and sizes[axis] == length:
            yield Hit.at(site, f"axis {axis} of input {index} has length {length}")


def input_rank(view: View, *, operators: Sequence[str], index: int, ranks: Sequence[int], from_opset: int = 0) -> Hits:
    """Nodes with an input of one of these ranks, in a program of that opset or a later one."""
    if view.model.opset_imports.get("", 0) < from_opset:
        return
    for site in view.of(*operators):
        sizes = fixed_sizes(given(site.node, index))
        if sizes is not None and len(sizes) in ranks:
            yield Hit.at(site, f"input {index} has {'1 axis' if len(sizes) == 1 else f'{len(sizes)} axes'}")


def dynamic_sizes(view: View, *, operators: Sequence[str], index: int) -> Hits:
    """Nodes with an input of which some length varies."""
    for site in view.of(*operators):
        sizes = fixed_sizes(given(site.node, index))
        if sizes is not None and None in sizes:
            yield Hit.at(site, f"input {index} has lengths that vary")


def trailing_empty_input(view: View, *, operators: Sequence[str]) -> Hits:
    """Nodes of these operators whose last input is written down as absent."""
    for site in view.of(*operators):
        if site.node.inputs and site.node.inputs[-1] is None:
            yield Hit.at(site, f"input {len(site.node.inputs) - 1} is an empty name")


def made_type(view: View, *, types: Sequence[str], besides: Sequence[str] = ()) -> Hits:
    """Nodes whose output is of one of these types, except of these operators and outputs of the program."""
    for site in view.sites:
        for value in site.node.outputs:
            known = value.dtype is not None and value.dtype.name in types
            if known and operator_of(site.node) not in besides and not value.is_graph_output():
                yield Hit.at(site, f"{value.name} is {value.dtype.name}")  # pyright: ignore[reportOptionalMemberAccess]


def computes_in_type(view: View, *, types: Sequence[str], besides: Sequence[str]) -> Hits:
    """Nodes that read one of these types, except of these operators."""
    for site in view.sites:
        if operator_of(site.node) not in besides and (read := _first_of(site, types)) is not None:
            yield Hit.at(site, read)


def _first_of(site: Site, types: Sequence[str]) -> str | None:
    for value in site.node.inputs:
        if value is not None and value.dtype is not None and value.dtype.name in types:
            return f"{value.name} is {value.dtype.name}"
    return None


def stored_type(view: View, *, types: Sequence[str]) -> Hits:
    """Constants of these types."""
    for value in view.constants():
        if value.dtype is not None and value.dtype.name in types:
            yield Hit(str(value.name), "", f"a constant of {value.dtype.name}")


def type_used(view: View, *, types: Sequence[str]) -> Hits:
    """Inputs and outputs of the program, constants and nodes' outputs of these types."""
    yield from stored_type(view, types=types)
    graph = view.model.graph
    for value in dict.fromkeys([*graph.inputs, *graph.outputs]):
        if value.dtype is not None and value.dtype.name in types:
            yield Hit(
                str(value.name), "", f"{'an input' if value.is_graph_input() else 'an output'} of {value.dtype.name}"
            )
    yield from made_type(view, types=types)


def opset_outside(view: View, *, lowest: int, highest: int) -> Hits:
    """The program itself, where its opset is outside a range."""
    opset = view.model.opset_imports.get("", 0)
    if not lowest <= opset <= highest:
        yield Hit(f"opset {opset}", "", f"outside {lowest} to {highest}")


def dynamic_input(view: View) -> Hits:
    """Inputs of the program with lengths that vary."""
    for value in view.model.graph.inputs:
        sizes = fixed_sizes(value)
        if value.shape is not None and sizes is not None and None in sizes:
            yield Hit(str(value.name), "", f"shape ({', '.join(str(size) for size in value.shape)})")


def target_option(view: View, *, path: str, names: Sequence[str]) -> Hits:
    """Values of the target file, in the mapping at `path`, that are given and not false."""
    given_values = view.target.get(path)
    values = given_values if isinstance(given_values, dict) else {}  # of a bundle it may be anything
    for name in names:
        if str(values.get(name, "0")).casefold() not in ("0", "false", "none", ""):
            yield Hit(f"{path}.{name}", "", f"{values[name]} in the target")


def types_in(names: Sequence[str]) -> tuple[ir.DataType, ...]:
    """ONNX's names as types."""
    return tuple(ir.DataType[name] for name in names)
