"""Weights of a model in which some columns of matrices are larger, and what they are multiplied with is smaller by the
same factors. The model computes what it did; its integers err less where columns have large inputs (AWQ, Lin et al.,
arXiv 2306.00978).

    qkv, gate_up   their inputs come from a norm, whose weights (and bias) take the inverse
    down           its inputs come from `up`, whose rows take it; only where a gate multiplies them
    out            its inputs are mixtures of values that several heads share: stays as it is

Place in the pipeline: export/calibration/scaling.py finds the factors, bundle.py reads a source through them, and
matrices.py puts integers of such matrices back into torch's own weights.
"""

from collections.abc import Mapping

import numpy as np

from lrkit.export.weights.layer_recipe import LayerRecipe
from lrkit.export.weights.low_rank import LowRank

Factors = Mapping[str, np.ndarray]
"""Matrix by its role, as "3.qkv" -> the factor of each column, float32 (in,), all more than 0."""
_NORMS = {"norm1": ("qkv",), "norm2": ("gate_up", "up")}
"""Norm of a layer -> the matrix that reads it."""


def can_rescale(role: str, recipe: LayerRecipe) -> bool:
    """Whether something in front of the matrix can take the inverse of its columns' factors."""
    name = role.rpartition(".")[2]
    if name == "down":
        return recipe.gated
    return name in ("qkv", "gate_up" if recipe.gated else "up") and "before" in recipe.norm_places


def inverse(factors: Factors) -> dict[str, np.ndarray]:
    """Those that undo them."""
    return {role: (1 / factor).astype(np.float32) for role, factor in factors.items()}


def rescaled(role: str, value: np.ndarray, factors: Factors) -> np.ndarray:
    """The weight `role` of a source (source.py), as it is with these factors: matrices (out, in), norms and biases."""
    layer, _, rest = role.partition(".")
    name, _, bias = rest.partition(".")
    if not layer.isdigit():
        return value
    for matrix in _NORMS.get(name, ()):
        if (factor := factors.get(f"{layer}.{matrix}")) is not None:
            value = value / factor
    if not bias and (factor := _of_columns(role, factors)) is not None:
        value = value * factor
    if (by_row := _of_rows(role, len(value), factors)) is not None:
        value = value * by_row.reshape(-1, *[1] * (value.ndim - 1))
    return value.astype(np.float32, copy=False)


def rescaled_branch(role: str, branch: LowRank | None, factors: Factors) -> LowRank | None:
    """What an adapter adds to the matrix `role`, where that is rescaled: it reads the same inputs, and what it adds
    goes the same way."""
    if branch is None:
        return None
    columns, rows = _of_columns(role, factors), _of_rows(role, len(branch.up), factors)
    down = branch.down if columns is None else branch.down * columns
    up = branch.up if rows is None else branch.up * rows[:, None]
    return LowRank(down.astype(np.float32, copy=False), up.astype(np.float32, copy=False))


def _of_columns(role: str, factors: Factors) -> np.ndarray | None:
    """(in,) of a matrix; gate and up read one input, and are one matrix for integers."""
    layer, _, name = role.partition(".")
    return factors.get(f"{layer}.{'gate_up' if name in ('gate', 'up') else name}")


def _of_rows(role: str, rows: int, factors: Factors) -> np.ndarray | None:
    """(out,) of a matrix or bias, whose rows of `up` stand last."""
    layer, _, rest = role.partition(".")
    if rest.partition(".")[0] not in ("up", "gate_up") or (factor := factors.get(f"{layer}.down")) is None:
        return None
    return np.concatenate([np.ones(rows - len(factor), np.float32), 1 / factor])
