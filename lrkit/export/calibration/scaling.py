"""Finds by how much the columns of a matrix are made larger before they are rounded, so that those with large inputs
err less: AWQ's search (Lin et al., arXiv 2306.00978, section 3.2), by the error of the matrix's products.

Place in the pipeline: calibrate.py asks for the factors of a matrix where int4.method is awq; weights/rescaled.py says
who takes their inverse.

Legend: N rows (out), C columns (in). H (C, C) is `Calibration.hessian`.
"""

import numpy as np
import torch

from lrkit.contract.schemes import Scheme
from lrkit.export.weights.quantizers.quantizer import Calibration, quantized

POWERS = np.arange(20) / 20
"""A column's factor is the root mean square of its inputs to one of these; 0 leaves it as it is."""
MOST_ROWS = 256
"""Rows of a matrix that are tried, evenly spread."""
_LEAST = 1e-4
"""Smallest factor before they are centred, of the largest: what is never multiplied has none of its own."""


def column_factors(weight: np.ndarray, calibration: Calibration, scheme: Scheme, block: int) -> np.ndarray:
    """Factors (C,) of the columns of a matrix (N, C), float32 and more than 0: those with which its rounded products
    are nearest to its own."""
    rows = np.ascontiguousarray(weight[:: max(1, len(weight) // MOST_ROWS)])
    hessian = torch.from_numpy(calibration.hessian)
    size = np.sqrt(np.maximum(np.diag(calibration.hessian), 0)).astype(np.float32)
    tried = [_factors(size, float(power)) for power in POWERS]
    lost = [_lost(rows, one, hessian, scheme, block) for one in tried]
    return tried[int(np.argmin(lost))]


def _factors(size: np.ndarray, power: float) -> np.ndarray:
    made = np.maximum(size, size.max() * _LEAST) ** power if size.max() > 0 else np.ones_like(size)
    return (made / np.sqrt(made.max() * made.min())).astype(np.float32)


def _lost(rows: np.ndarray, factors: np.ndarray, hessian: torch.Tensor, scheme: Scheme, block: int) -> float:
    """Squared error of the products of rows (n, C), rounded with these factors."""
    made = quantized(rows * factors, scheme, block, "columns")
    assert made is not None, "a matrix that stays float is not calibrated"
    away = torch.from_numpy(made.dequantize() / factors - rows)
    return float(((away @ hessian) * away).sum())


def rescaled_calibration(calibration: Calibration, factors: np.ndarray) -> Calibration:
    """Of the matrix whose columns have been made larger, whose inputs then are smaller."""
    return Calibration(calibration.hessian / np.outer(factors, factors).astype(np.float32), calibration.num_tokens)
