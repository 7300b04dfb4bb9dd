"""Weights of a layer as a program wants them: few large matrices, and nothing left to compute that can be folded in.

Place in the pipeline: source.py asks `packed` by role; the parts come from the family's reader.

Legend: H query heads, G key heads, W head width, D width.
"""

from collections.abc import Callable

import numpy as np

from lrkit.export.weights.layer_recipe import Dimensions

Part = Callable[[str, str], np.ndarray]
"""(part, weight or bias) of one layer: `WeightReader.layer`."""


def packed(part: Part, role: str, dimensions: Dimensions) -> np.ndarray:
    """The weight `role` of a layer: qkv, head_norm, gate_up, or a part of reader.py by itself; its bias with `.bias`
    behind."""
    name, _, bias = role.partition(".")
    kind = "bias" if bias else "weight"
    if name == "qkv":
        return _by_key_head([part(one, kind) for one in "qkv"], dimensions)
    if name == "head_norm":
        return _head_norm(part("q_norm", kind), part("k_norm", kind), dimensions)
    if name == "gate_up":
        return np.concatenate([part("gate", kind), part("up", kind)])
    return part(name, kind)


def _by_key_head(parts: list[np.ndarray], dimensions: Dimensions) -> np.ndarray:
    """Rows of q, k and v by key head: the queries that share it, the key, the value. 1 / sqrt(W) is folded into the
    query rows, so that no node has to apply it; a norm behind them would undo it, and takes it over."""
    query, key, value = parts
    if dimensions.recipe.head_norm is None:
        query = _scaled(query, dimensions)
    query, key = _pairs_in_halves(query, key, dimensions)
    by_group = [rows.reshape(dimensions.num_key_heads, -1, *rows.shape[1:]) for rows in (query, key, value)]
    return np.concatenate(by_group, axis=1).reshape(-1, *query.shape[1:])


def _head_norm(query: np.ndarray, key: np.ndarray, dimensions: Dimensions) -> np.ndarray:
    """What every head's normed query and key are multiplied with, or what is added to them, by key head: (G, H / G + 1,
    W). Weights of all heads are repeated."""
    groups, width = dimensions.num_key_heads, dimensions.head_width
    query = np.broadcast_to(_scaled(query, dimensions), (dimensions.num_heads, width)).reshape(-1)
    key = np.broadcast_to(key, (groups, width)).reshape(-1)
    query, key = _pairs_in_halves(query, key, dimensions)
    return np.concatenate([rows.reshape(groups, -1, width) for rows in (query, key)], axis=1)


def _scaled(query: np.ndarray, dimensions: Dimensions) -> np.ndarray:
    return query * np.float32(dimensions.head_width**-0.5)


def _pairs_in_halves(query: np.ndarray, key: np.ndarray, dimensions: Dimensions) -> tuple[np.ndarray, np.ndarray]:
    """Rows of heads, as the rotation reads them."""
    if dimensions.recipe.rotary_pairs == "halves":
        return query, key
    return _in_halves(query, dimensions.head_width), _in_halves(key, dimensions.head_width)


def _in_halves(rows: np.ndarray, width: int) -> np.ndarray:
    """Rows of heads in which neighbours turn together -> heads in which i and i + W / 2 do. Queries and keys are moved
    alike, so their products stay."""
    pairs = rows.reshape(-1, width // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
