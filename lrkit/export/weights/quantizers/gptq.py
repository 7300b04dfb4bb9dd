"""GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after the other, and those that are still to come
take over the error of each, as the matrix's own inputs weigh it.

Place in the pipeline: export/calibration gathers what matrices are multiplied with and asks `Gptq`; a matrix of which
nothing is known gets the scales of the least error (searched.py).

Scales are chosen before, each for the columns of its block in their own order. So columns may be rounded in any order,
those with the largest inputs first, and a program needs no list of groups.

H = R R^T with R upper triangular, so the squared error of the products is that of E R, where E is what the columns are
off. Column k of E R holds the errors of the columns up to k. So column k is rounded such that it cancels those before
it, and no inverse of H is needed.

Legend: N rows (out), C columns (in). H (C, C) is `Calibration.hessian`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrkit.contract.quantized import Quantized
from lrkit.contract.schemes import Scheme
from lrkit.errors import ExportError
from lrkit.export.weights.quantizers.quantizer import Calibration
from lrkit.export.weights.quantizers.rounded import RANGES
from lrkit.export.weights.quantizers.searched import search

LAZY = 64
"""Columns that take over the errors of all before them at once."""
DAMPING = 0.01
"""Part of the mean of H's diagonal that is added to it."""


@dataclass(frozen=True)
class Gptq:
    """The quantizer of a scheme, with `block` weights per scale."""

    scheme: Scheme
    block: int

    def __call__(self, weight: np.ndarray, role: str, calibration: Calibration | None = None) -> Quantized:
        """Integers of a matrix (out, in).

        Raises:
            ExportError: H holds no numbers, or has no inverse.
        """
        bits, offsets = self.scheme.bits, self.scheme.offsets
        if calibration is None:
            return search(weight, self.block, bits, offsets)
        return solve(weight, calibration.hessian, self.block, bits, offsets, role=role)


def solve(
    weight: np.ndarray, hessian: np.ndarray, block: int, bits: int, offsets: bool = False, *,
    damping: float = DAMPING, by_size: bool = True, role: str = "a matrix",
) -> Quantized:  # fmt: skip
    """Integers of a matrix (N, C) with a small error of its products. `by_size` rounds the columns with the largest
    inputs first.

    Raises:
        ExportError: H holds no numbers, or has no inverse.
    """
    if not np.isfinite(hessian).all():
        raise ExportError(
            f"calibration of {role} gave NaN or infinity; check the checkpoint with `lrkit validate`, or calibrate on "
            "other samples"
        )
    held = search(weight, block, bits, offsets, np.diag(hessian).astype(np.float32))
    order = np.argsort(-np.diag(hessian), kind="stable") if by_size else np.arange(len(hessian))
    upper = _upper(hessian, order, damping, role)
    integers = np.empty(weight.shape, np.int8)
    scales = torch.from_numpy(np.repeat(held.scales, block, axis=1)[:, order].T.copy())
    zeros = None if held.zeros is None else np.repeat(held.zeros, block, axis=1)[:, order].T.astype(np.float32)
    offset = torch.zeros_like(scales) if zeros is None else torch.from_numpy(zeros)
    columns = torch.from_numpy(weight[:, order].T.astype(np.float32))
    integers[:, order] = _by_column(columns, upper, scales, offset, bits).T.numpy()
    return Quantized(integers.reshape(held.integers.shape), held.scales, bits, held.zeros)


def _upper(hessian: np.ndarray, order: np.ndarray, damping: float, role: str) -> Tensor:
    """R of H in this order, float32 (C, C), each column divided by its last number, that of the diagonal."""
    back = order[::-1].copy()  # the lower factor of H from behind is R from behind
    wide = torch.from_numpy(hessian[np.ix_(back, back)]).to(torch.float64)
    diagonal = wide.diagonal()
    diagonal += damping * diagonal.mean()
    diagonal[diagonal == 0] = 1.0  # nothing was ever multiplied with it
    wrong = torch.empty((), dtype=torch.int32)
    torch.linalg.cholesky_ex(wide, out=(wide, wrong))
    if bool(wrong) or not bool(wide.isfinite().all()):
        raise ExportError(
            f"calibration of {role} gave a matrix that has no inverse, even damped; give more and other samples, or "
            "set int4.method=rtn"
        )
    wide /= wide.diagonal().clone()
    return wide.to(torch.float32).flip(0, 1)


def _by_column(columns: Tensor, upper: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """Integers (C, N) of columns (C, N), which become what is off."""
    high, low = RANGES[bits]
    integers = torch.empty(columns.shape, dtype=torch.int8)
    for start in range(0, len(columns), LAZY):
        end = min(start + LAZY, len(columns))
        owed = upper[:start, start:end].T @ columns[:start]
        for i in range(start, end):
            steps = torch.add(columns[i], owed[i - start]).div_(scales[i]).round_().add_(zeros[i]).clamp_(low, high)
            integers[i] = steps
            columns[i].addcmul_(steps.sub_(zeros[i]), scales[i], value=-1)
            owed[i + 1 - start :].addr_(upper[i, i + 1 : end], columns[i])
    return integers
