"""Matchers of loops, branches and caches.

Place in the pipeline: as operators.py.

A Loop has the inputs (trip count, condition, states...); its body has (iteration number, condition, states...) and
returns (condition, states..., scan outputs...).
"""

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from lrkit.export.preflight.view import (
    Hit,
    Hits,
    Site,
    View,
    attribute,
    behind,
    fixed_sizes,
    given,
    graphs_of,
    numbers,
)

COPIES = ("Identity", "Cast")


def _loops(view: View) -> Iterator[tuple[Site, ir.Graph]]:
    for site in view.of("Loop"):
        yield site, dict(graphs_of(site.node))["body"]


def _num_states(site: Site) -> int:
    return len(site.node.inputs) - 2


def growing_state(view: View) -> Hits:
    """Loops with a carried state whose shape changes from one iteration to the next."""
    for site, body in _loops(view):
        for index in range(_num_states(site)):
            held, new = body.inputs[2 + index], body.outputs[1 + index]
            change = _grown(held, new) or _other_shape(given(site.node, 2 + index), held, new)
            if change:
                yield Hit.at(site, f"state {held.name}: {change}")


def _grown(held: ir.Value, new: ir.Value) -> str:
    """Whether the new state is the old one with something joined to it."""
    made = behind(new, *COPIES)
    node = made.producer() if made is not None else None
    if node is None or node.op_type not in ("Concat", "Pad"):
        return ""
    parts = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    joined = any(behind(part, *COPIES) is held for part in parts) and len(node.inputs) > 1
    return f"{node.op_type} makes it longer" if joined else ""


def _other_shape(first: ir.Value | None, held: ir.Value, new: ir.Value) -> str:
    """Whether known lengths, or the rank, differ before and after an iteration."""
    after = fixed_sizes(new)
    for before in (fixed_sizes(first), fixed_sizes(held)):
        if before is None or after is None:
            continue
        pairs = zip(before, after, strict=False)
        if len(before) != len(after) or any(None not in pair and pair[0] != pair[1] for pair in pairs):
            return f"shape {_text(before)} becomes {_text(after)}"
    return ""


def _text(sizes: list[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes) or "scalar"


def _trip(site: Site, most: int) -> str:
    """missing, constant, input or computed; a constant that is too large counts as missing."""
    value = given(site.node, 0)
    if value is None:
        return "missing"
    constant = numbers(value)
    if constant is not None:
        return "missing" if int(constant.reshape(-1)[0]) >= most else "constant"
    origin = behind(value, *COPIES)
    return "input" if origin is not None and origin.is_graph_input() and not site.around else "computed"


def scan_output(view: View, *, trip: Sequence[str], most: int, early: bool = False) -> Hits:
    """Loops with scan outputs and such a trip count; `early`: only those that may end before it."""
    for site, body in _loops(view):
        scanned = body.outputs[1 + _num_states(site) :]
        if scanned and _trip(site, most) in trip and (not early or not _goes_on_as_told(body)):
            yield Hit.at(site, f"scan output {', '.join(str(value.name) for value in scanned)}")


def _goes_on_as_told(body: ir.Graph) -> bool:
    """Whether the body hands its condition on unchanged, or says a constant."""
    said = behind(body.outputs[0], "Identity")
    return said is body.inputs[1] or numbers(said) is not None


def trip_missing(view: View, *, most: int) -> Hits:
    """Loops without a trip count that counts."""
    for site, _ in _loops(view):
        if _trip(site, most) == "missing":
            yield Hit.at(site, "no trip count" if given(site.node, 0) is None else "the trip count is too large")


def iteration_read(view: View, *, trip: Sequence[str], most: int) -> Hits:
    """Loops with such a trip count whose body reads the number of the iteration."""
    for site, body in _loops(view):
        number = body.inputs[0]
        if _trip(site, most) in trip and (readers := view.users(number)):
            yield Hit.at(site, f"{number.name} is read by {readers[0].name}")


def condition_read(view: View, *, initial: bool) -> Hits:
    """Loops whose body reads its condition, and which were given one (or not). Handing it on is no reading where one
    was given."""
    for site, body in _loops(view):
        if (given(site.node, 1) is not None) != initial:
            continue
        handed_on = body.outputs[0].producer()
        readers = [reader for reader in view.users(body.inputs[1])]
        if initial:
            readers = [r for r in readers if not (r.node is handed_on and r.node.op_type == "Identity")]
        if readers:
            yield Hit.at(site, f"{body.inputs[1].name} is read by {readers[0].name}")


def branch_rank(view: View) -> Hits:
    """Ifs whose branches give an output of different rank."""
    for site in view.of("If"):
        one, other = (dict(graphs_of(site.node))[name].outputs for name in ("then", "else"))
        for first, second in zip(one, other, strict=False):
            ranks = [len(v.shape) if v.shape is not None else None for v in (first, second)]
            if None not in ranks and ranks[0] != ranks[1]:
                yield Hit.at(site, f"{first.name} has {ranks[0]} axes, {second.name} has {ranks[1]}")


def cache_elsewhere(view: View, *, operators: Sequence[str]) -> Hits:
    """Cache writers whose cache is no input of the program, or whose result is no output of it."""
    for site in view.of(*operators):
        cache, made = given(site.node, 0), site.node.outputs[0]
        graph = view.model.graph
        if cache not in list(graph.inputs):
            yield Hit.at(site, f"the cache {cache.name if cache else ''} is no input of the program")
        elif made not in list(graph.outputs):
            yield Hit.at(site, f"the result {made.name} is no output of the program")


def cache_axis(view: View, *, operators: Sequence[str], axis: int) -> Hits:
    """Cache writers along another axis than the one from the end that is given."""
    for site in view.of(*operators):
        written, sizes = attribute(site.node, "axis"), fixed_sizes(given(site.node, 0))
        written = -2 if written is None else int(written)
        if written != axis and not (sizes is not None and written == len(sizes) + axis):
            yield Hit.at(site, f"axis {written}")
