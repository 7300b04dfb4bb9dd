"""A quantizer as a stranger would add one: one file, and a row in the table of schemes. It rounds to 4 bits with 16
weights per scale, and chooses scales that clip where the columns that matter gain by it."""

from dataclasses import dataclass

import numpy as np

from lrkit.contract.quantized import Quantized
from lrkit.contract.schemes import FLOAT, Scheme, Tolerance
from lrkit.export.weights.quantizers.quantizer import Calibration
from lrkit.export.weights.quantizers.rounded import quantize

NAME = "int4-search"


@dataclass(frozen=True)
class Searched:
    """Of each block the scale with the smallest error of the product."""

    scheme: Scheme
    block: int

    def __call__(self, weight: np.ndarray, role: str, calibration: Calibration | None = None) -> Quantized:
        rounded = quantize(weight, self.block, self.scheme.bits)
        if calibration is None:
            return rounded
        blocks = weight.reshape(rounded.integers.shape)
        importance = np.diag(calibration.hessian).reshape(1, *blocks.shape[1:])
        scales = np.stack([rounded.scales * part for part in (1.0, 0.9, 0.8, 0.7)])[..., None]
        integers = np.clip(np.rint(blocks / scales), -8, 7)
        best = (importance * (integers * scales - blocks) ** 2).sum(-1).argmin(0)[None, ..., None]
        return Quantized(
            np.take_along_axis(integers, best, 0)[0].astype(np.int8),
            np.take_along_axis(scales, best, 0)[0, ..., 0],
            self.scheme.bits,
        )


ROW = Scheme(
    name=NAME,
    bits=4,
    quantizer="tests.toy_quantizer:Searched",
    blocks=(16,),
    encodings={"ort": "MatMulNBits", "standard": "DequantizeLinear"},
    parts={
        "layers": (NAME,), "head": (NAME, "int8", FLOAT), "embedding": ("int8", FLOAT), "vision": (NAME, FLOAT),
    },
    tolerance=Tolerance(
        {"accuracy_drop": 0.05}, "a toy", held={"numbers": 1e-4}, held_reason="torch held the integers' values"
    ),
)  # fmt: skip
