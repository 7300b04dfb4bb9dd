"""Rounds a reasoner's weights on torch, as an export would, and lets torch hold what the integers stand for: layers,
head and embedding. The vision tower stays as it is.

Programs hold 4 or 8 bits. Here a matrix can have fewer, to see how far a method goes.

Place in the pipeline: benchmarks/quantization.py gathers Hessians once (`hessians`), then rounds by each method
(`round_weights`); comparing.py says how far the result is from floats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from lrkit.contract.bundle.manifest import Limits, Role
from lrkit.contract.quantized import Quantized
from lrkit.contract.schemes import Scheme
from lrkit.export.calibration.gather import CalibrationSet, gather
from lrkit.export.calibration.made import Made, Rounding, round_matrices
from lrkit.export.calibration.matrices import Matrices, Matrix
from lrkit.export.calibration.sums import Phase, Sums
from lrkit.export.targets.target import Target
from lrkit.export.weights.quantizers.quantizer import Calibration, quantized_rows
from lrkit.export.weights.rescaled import Factors
from lrkit.export.weights.source import Source, read_source
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import Processor


@dataclass(frozen=True)
class Narrow(Scheme):
    """A row with fewer bits than a program holds."""

    def __post_init__(self) -> None:
        """Nothing is asked of it."""


@dataclass
class Held:
    """A reasoner on torch whose matrices can be replaced."""

    reasoner: LatentReasoner
    source: Source
    matrices: Matrices
    target: Target

    @classmethod
    def of(cls, reasoner: LatentReasoner, target: Target) -> "Held":
        """`target` says how which matrix is held. The adapter is merged."""
        source = read_source(reasoner)
        return cls(reasoner, source, Matrices(reasoner, source, target), target)

    def all(self) -> list[Matrix]:
        """Matrices that become integers."""
        return [matrix for layer in self.matrices.all() for matrix in layer]

    def hold(self, matrix: Matrix, made: Quantized, factors: Factors | None = None) -> None:
        """Torch multiplies with what the integers stand for, and the factors that columns were rescaled by."""
        if matrix.part == "head":
            self._hold_head(matrix.module, made.dequantize())
        else:
            self.matrices.hold(matrix, made, factors)

    def _hold_head(self, module: Any, values: np.ndarray) -> None:
        """A head of its own, even where it shared its matrix with the embedding, as in a program of integers."""
        rows, latent = torch.from_numpy(values), self.reasoner.latent
        module.weight = nn.Parameter(rows)
        with torch.no_grad():
            latent.head_row_D.copy_(rows[latent.token_id])

    def hold_embedding(self) -> None:
        """Rows of the embedding as the target holds them."""
        scheme = self.target.scheme_of("embedding")
        if scheme is None:
            return
        made = quantized_rows(self.source.weight("embedding"), scheme, self.target.int4.block, "embedding")
        if made is not None:
            with torch.no_grad():
                self.reasoner.backbone.embedding_rows().copy_(torch.from_numpy(made.dequantize()))


def hessians(
    held: Held, processor: Processor, role: Role, limits: Limits, given: CalibrationSet,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Sums]:  # fmt: skip
    """What every matrix is multiplied with, in one round, so that all are in memory at once. Raises as `gather`."""
    return gather(held.reasoner, processor, role, limits, given, held.all(), progress)


def round_weights(
    held: Held, bits: int = 4, sums: Mapping[str, Sums] | None = None, mix: Mapping[Phase, float] | None = None,
) -> Made:  # fmt: skip
    """Rounds all matrices by the target's method, with `bits` a weight where the target says 4; torch holds them.
    `sums` are needed by methods that calibrate.

    Raises:
        ExportError: a Hessian is of no use.
    """

    def scheme_for(role: str, part: str) -> Scheme | None:
        found = held.target.scheme_for(role, part)
        return None if found is None else _with_bits(found, bits)

    def calibration(role: str) -> Calibration | None:
        return None if sums is None or mix is None else sums[role].calibration(mix)

    int4, recipe = held.target.int4, held.source.dimensions.recipe
    how = Rounding(scheme_for, int4.block, int4.method, recipe)
    made = round_matrices(how, held.all(), held.source.weight, calibration)
    held.hold_embedding()  # before the head, which reads it where both are one matrix
    for matrix in held.all():
        if matrix.role in made.integers:
            held.hold(matrix, made.integers[matrix.role], made.factors)
    return made


def _with_bits(scheme: Scheme, bits: int) -> Scheme:
    if scheme.bits != 4 or bits == 4:
        return scheme
    values: dict[str, Any] = {one.name: getattr(scheme, one.name) for one in fields(scheme)}
    values["bits"] = bits
    return Narrow(**values)
