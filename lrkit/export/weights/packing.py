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
    """The weight `role` of a layer: qkv, gate_up, or a part of reader.py by itself; its bias with `.bias` behind."""
    name, _, bias = role.partition(".")
    kind = "bias" if bias else "weight"
    if name == "qkv":
        return _by_key_head([part(one, kind) for one in "qkv"], dimensions)
    if name == "gate_up":
        return np.concatenate([part("gate", kind), part("up", kind)])
    return part(name, kind)


def _by_key_head(parts: list[np.ndarray], dimensions: Dimensions) -> np.ndarray:
    """Rows of q, k and v by key head: the queries that share it, the key, the value. 1 / sqrt(W) is folded into the
    query rows, so that no node has to apply it."""
    query, key, value = parts
    width = dimensions.head_width
    query = query * np.float32(width**-0.5)
    if dimensions.recipe.rotary_pairs == "neighbours":
        query, key = _in_halves(query, width), _in_halves(key, width)
    by_group = [rows.reshape(dimensions.num_key_heads, -1, *rows.shape[1:]) for rows in (query, key, value)]
    return np.concatenate(by_group, axis=1).reshape(-1, *query.shape[1:])


def _in_halves(rows: np.ndarray, width: int) -> np.ndarray:
    """Rows of heads in which neighbours turn together -> heads in which i and i + W / 2 do. Queries and keys are moved
    alike, so their products stay."""
    pairs = rows.reshape(-1, width // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
