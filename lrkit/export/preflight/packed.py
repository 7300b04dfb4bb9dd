"""Matchers of quantized weights: how a DequantizeLinear is written, where its weight is used, and what becomes of it.

Place in the pipeline: as operators.py.

A DequantizeLinear has the inputs (weight, scale, zero point); a weight of K inputs and N outputs is stored as [K, N].
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from lrkit.export.preflight.operators import types_in
from lrkit.export.preflight.view import (
    QUANTIZED,
    SUB_BYTE,
    Hit,
    Hits,
    Site,
    View,
    attribute,
    fixed_sizes,
    given,
    numbers,
)

DEQUANTIZE = "DequantizeLinear"
PRODUCTS = ("MatMul", "Gemm")
OUTERMOST_ROWS_AXIS = -2


def _dequantizers(view: View) -> Iterator[tuple[Site, ir.Value]]:
    """(node, weight) of those that read a quantized constant."""
    for site in view.of(DEQUANTIZE):
        weight = given(site.node, 0)
        if weight is not None and weight.const_value is not None and weight.dtype in (*QUANTIZED, ir.DataType.UINT8):
            yield site, weight


def zero_point(view: View, *, operators: Sequence[str]) -> Hits:
    """Nodes whose zero point is anything but a constant zero."""
    for site in view.of(*operators):
        point = given(site.node, 2)
        if point is None:
            continue
        values = numbers(point)
        if values is None or np.any(values.astype(np.float32)):
            yield Hit.at(site, f"the zero point {point.name} is {'no constant' if values is None else 'not zero'}")


def uneven_blocks(view: View) -> Hits:
    """Nodes whose blocks do not divide the weight."""
    for site, weight, axis, sizes in _blocked(view):
        block, scale = int(attribute(site.node, "block_size")), fixed_sizes(given(site.node, 1))
        length = sizes[axis]
        if length is not None and (length % block or (scale and scale[axis] not in (None, length // block))):
            yield Hit.at(site, f"blocks of {block} do not divide the {length} of {weight.name}")


def block_size(view: View, *, usual: Sequence[int]) -> Hits:
    """Nodes with blocks of another size."""
    for site, _, _, _ in _blocked(view):
        block = int(attribute(site.node, "block_size"))
        if block not in usual:
            yield Hit.at(site, f"blocks of {block}")


def block_axis(view: View) -> Hits:
    """Nodes with blocks along another axis than the last two."""
    for site, _, axis, sizes in _blocked(view):
        if axis < len(sizes) - 2:
            yield Hit.at(site, f"blocks along axis {axis} of {len(sizes)}")


def _blocked(view: View) -> Iterator[tuple[Site, ir.Value, int, list[int | None]]]:
    """(node, weight, axis from 0, shape) of those with blocks."""
    for site, weight in _dequantizers(view):
        sizes = fixed_sizes(weight)
        if attribute(site.node, "block_size") and sizes:
            axis = attribute(site.node, "axis")
            yield site, weight, (1 if axis is None else int(axis)) % len(sizes), sizes


def scale_type(view: View) -> Hits:
    """Products of a dequantized weight and an operand of another type than its scale."""
    for site, _ in _dequantizers(view):
        scale = given(site.node, 1)
        for product in view.users(site.node.outputs[0]):
            other = given(product.node, 0)
            if product.node.op_type in PRODUCTS and other is not None and scale is not None:
                types = other.dtype, scale.dtype
                if None not in types and types[0] != types[1]:
                    yield Hit.at(product, f"{other.name} is {types[0]}, the scale {scale.name} is {types[1]}")


def odd_volume(view: View) -> Hits:
    """Constants of less than a byte an element, with an odd number of elements."""
    for value in view.constants():
        sizes = fixed_sizes(value)
        if value.dtype in SUB_BYTE and sizes and None not in sizes and np.prod([n for n in sizes if n is not None]) % 2:
            yield Hit(str(value.name), "", f"{value.dtype} of {'x'.join(map(str, sizes))}")


def quantized_elsewhere(view: View) -> Hits:
    """Quantized constants that are read by another node than a DequantizeLinear."""
    for value in view.constants():
        if value.dtype in QUANTIZED:
            for site in view.users(value):
                if site.node.op_type not in (DEQUANTIZE, "QuantizeLinear", "Constant"):
                    yield Hit.at(site, f"reads {value.name}, a constant of {value.dtype}")


def crosses_branch(view: View, *, types: Sequence[str]) -> Hits:
    """Constants that a branch of an If reads, and something outside that branch too."""
    asked = types_in(types)
    for value in view.constants():
        if value.dtype in asked:
            sites = view.users(value)
            if any(site.branches for site in sites) and len({site.branches for site in sites}) > 1:
                inside = next(site for site in sites if site.branches)
                yield Hit.at(inside, f"{value.name} is also read by {next(s.name for s in sites if s is not inside)}")


def shared_by_loop(view: View, *, types: Sequence[str]) -> Hits:
    """Products of many rows in the outermost graph with a quantized constant that a body multiplies by as well."""
    asked = types_in(types)
    for value in view.constants():
        if value.dtype not in asked:
            continue
        products = [product for site in view.users(value) for product in _products(view, site)]
        inner = [site for site in products if site.in_loop]
        for site in products:
            if site.around or _rows(site) == 1:
                continue
            same = [other for other in inner if _rank(other) == _rank(site)]
            if same:
                yield Hit.at(site, f"{value.name} is also multiplied by {same[0].name}")


def shared_side_by_side(view: View, *, types: Sequence[str]) -> Hits:
    """Products of many rows in the outermost graph with a quantized constant that another one there multiplies by, if
    neither follows from the other."""
    asked = types_in(types)
    for value in view.constants():
        if value.dtype not in asked:
            continue
        products = [product for site in view.users(value) for product in _products(view, site) if not product.around]
        for site in products:
            beside = [p for p in products if p is not site and _rank(p) == _rank(site) and not _chained(view, site, p)]
            if _rows(site) != 1 and beside:
                yield Hit.at(site, f"{value.name} is also multiplied by {beside[0].name}")


def _chained(view: View, one: Site, other: Site) -> bool:
    """Whether one of two nodes follows from the other."""
    return view.follows(one.node, other.node) or view.follows(other.node, one.node)


def _products(view: View, site: Site) -> list[Site]:
    """What multiplies by the weight that a node dequantizes."""
    if site.node.op_type != DEQUANTIZE:
        return []
    made = site.node.outputs[0]
    return [user for user in view.users(made) if user.node.op_type in PRODUCTS and given(user.node, 1) is made]


def _rank(site: Site) -> int | None:
    sizes = fixed_sizes(given(site.node, 0))
    return None if sizes is None else len(sizes)


def _rows(site: Site) -> int | None:
    sizes = fixed_sizes(given(site.node, 0))
    return sizes[OUTERMOST_ROWS_AXIS] if sizes and len(sizes) > 1 else None


def fusion(view: View, *, blocks: Sequence[int], outcome: str) -> Hits:
    """Weights that ONNX Runtime's fusion to MatMulNBits leaves alone (`unfused`), rewrites (`fused`), or fails on
    (`fails`)."""
    for site, weight in _dequantizers(view):
        for product in view.users(site.node.outputs[0]):
            if weight.dtype not in types_in(("INT4", "UINT4")) or product.node.op_type not in (*PRODUCTS, "Transpose"):
                continue
            if product.around != site.around:  # see float_copy
                continue
            obstacle = _obstacle(view, site, weight, product, blocks)
            inside = bool(site.around) and weight.graph is not site.node.graph
            found = "unfused" if obstacle else "fails" if inside else "fused"
            if found == outcome:
                yield Hit.at(site, obstacle or f"feeds {product.name}")


def _obstacle(view: View, site: Site, weight: ir.Value, product: Site, blocks: Sequence[int]) -> str:
    """Why ONNX Runtime does not fuse this weight with its product; empty where it does."""
    block, axis = attribute(site.node, "block_size"), attribute(site.node, "axis")
    if product.node.op_type == "Transpose" or attribute(product.node, "transB"):
        return "the weight is stored as [N, K] and transposed"
    if block and (int(block) not in blocks or int(axis or 0) != 0):
        return f"blocks of {block} along axis {axis}"
    if len(view.users(site.node.outputs[0])) > 1 or len(view.users(weight)) > 1:
        return "the weight has several readers"
    return ""


def outer_weight(view: View, *, operators: Sequence[str], index: int, name: str, values: Sequence[object]) -> Hits:
    """Nodes with an attribute of one of these values whose input `index` is a constant of a graph further out."""
    for site in view.of(*operators):
        weight = given(site.node, index)
        outside = weight is not None and weight.const_value is not None and weight.graph is not site.node.graph
        if outside and attribute(site.node, name) in values:
            yield Hit.at(site, f"{weight.name if weight else ''} lies outside")


def float_copy(view: View) -> Hits:
    """Dequantizers of the outermost graph whose result a body reads."""
    for site, _ in _dequantizers(view):
        readers = [user for user in view.users(site.node.outputs[0]) if len(user.around) > len(site.around)]
        if readers:
            yield Hit.at(site, f"read by {readers[0].name}")
