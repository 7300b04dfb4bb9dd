"""The seam of quantizers: what one is given and gives, and how a scheme's own is found.

Place in the pipeline: weight_store.py, and shape.py for torch's side of the comparison -> `quantized` -> the quantizer
that the scheme's row names (lrkit/contract/schemes.py), loaded when it is first asked -> integers.py.

Legend: a matrix is (out, in), float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lrkit.contract.quantized import Quantized
from lrkit.contract.schemes import Method, Scheme
from lrkit.errors import RowError
from lrkit.export.weights.integers import block_for
from lrkit.registry import Registry

METHODS: Mapping[Method, str] = {
    "search": "lrkit.export.weights.quantizers.searched:Searched",
    "gptq": "lrkit.export.weights.quantizers.gptq:Gptq",
    "awq": "lrkit.export.weights.quantizers.searched:Searched",
}
"""How integers are chosen -> the quantizer, of every scheme with a scale per block. rtn: that of the scheme's row; awq:
what rounds the columns that export/calibration/scaling.py has made larger."""


@dataclass(frozen=True)
class Calibration:
    """What one matrix was multiplied with while the model ran."""

    hessian: np.ndarray
    """float32 (in, in): the mean of x times x transposed over the inputs x. Half the second derivative of the squared
    error of a row's products by its weights."""
    num_tokens: int
    """Inputs that it was gathered from."""

    @classmethod
    def of(cls, inputs: np.ndarray) -> "Calibration":
        """From inputs (tokens, in)."""
        wide = inputs.astype(np.float64)
        return cls((wide.T @ wide / max(1, len(wide))).astype(np.float32), len(inputs))


Calibrate = Callable[[str], Calibration | None]
"""Role of a matrix, as "3.gate_up" -> its calibration; None where nothing was gathered."""


def uncalibrated(*asked: str) -> None:
    """Nothing is known of any matrix: an export without data."""


class Quantizer(Protocol):
    """Made of (scheme, weights per scale), then asked matrix by matrix."""

    def __call__(self, weight: np.ndarray, role: str, calibration: Calibration | None) -> Quantized:
        """The integers of a matrix whose `in` is a multiple of the block. Rows are independent of each other: a
        program joins the rows of several matrices that read the same input."""
        ...


def quantizer_of(scheme: Scheme, block: int, method: Method = "rtn") -> Quantizer:
    """The quantizer that the row of a scheme of integers names, or that of a method.

    Raises:
        RowError: it is not there, or not complete.
    """
    assert scheme.quantizer is not None, "floats have none"
    named = scheme.quantizer if scheme.by_row else METHODS.get(method, scheme.quantizer)
    table = Registry[Callable[[Scheme, int], Quantizer]]("quantizer", {scheme.name: named})
    made = table.load(scheme.name)(scheme, block)
    if not callable(made):
        raise RowError(f"quantizer {scheme.name}: {named} has no __call__, which Quantizer asks for; write it")
    return made


def quantized(
    weight: np.ndarray, scheme: Scheme, wanted: int, role: str, calibration: Calibration | None = None,
    method: Method = "rtn",
) -> Quantized | None:  # fmt: skip
    """A matrix as integers, with at most `wanted` weights per scale, or a row; None where no block of the scheme
    divides its width, or it is too small, so that it stays float."""
    if min(weight.shape) < scheme.least:
        return None
    block = weight.shape[1] if scheme.by_row else block_for(weight.shape[1], wanted, scheme.blocks)
    return None if block is None else quantizer_of(scheme, block, method)(weight, role, calibration)


def quantized_rows(table: np.ndarray, scheme: Scheme, wanted: int, role: str) -> Quantized | None:
    """A matrix from which rows are looked up, and with which nothing is multiplied: one scale for each row; of four
    bits one for at most `wanted` weights, or None where no block divides its width."""
    if scheme.bits == 4:
        return quantized(table, scheme, wanted, role)
    return quantizer_of(scheme, table.shape[1])(table, role, None)
