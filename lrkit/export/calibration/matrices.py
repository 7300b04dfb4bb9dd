"""The matrices of a program and where torch has them: whose input is gathered, and which weights take integers back.

Place in the pipeline: gather.py watches `Matrix.module`; calibrate.py rounds matrix by matrix and calls `hold`.

Legend: a role is a matrix of a program, as "3.qkv" (lrkit/export/weights/source.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lrkit.contract.quantized import Quantized
from lrkit.export.targets.target import Target
from lrkit.export.weights.integers import block_for
from lrkit.export.weights.reader import WeightReader, reader_of
from lrkit.export.weights.rescaled import Factors, inverse, rescaled
from lrkit.export.weights.row_places import Rows, rows_of
from lrkit.export.weights.source import Source
from lrkit.model.reasoner import LatentReasoner


@dataclass(frozen=True)
class Matrix:
    """One matrix that becomes integers."""

    role: str
    part: str
    """layers or head."""
    module: nn.Module
    """Of torch; it reads the same input."""
    width: int
    """Of that input."""


class Matrices:
    """Those of a reasoner on torch. An adapter that has not been merged stays active beside what is rounded: what its
    modules call their weight is the base's."""

    def __init__(self, reasoner: LatentReasoner, source: Source, target: Target) -> None:
        self._model: Any = reasoner.backbone.model
        self._source, self._target = source, target
        self._reader: WeightReader = reader_of(source.family)

    def all(self) -> list[list[Matrix]]:
        """Those that become integers with a scale per block, layer by layer; the head last."""
        layers = [list(self._of_layer(number)) for number in range(self._source.dimensions.num_layers)]
        return [found for found in [*layers, list(self._head())] if found]

    def _of_layer(self, number: int) -> Iterator[Matrix]:
        inner = "gate_up" if self._source.dimensions.recipe.gated else "up"
        for name in ("qkv", "out", inner, "down"):
            tensor = self._rows(number, name).tensors[0]
            yield from self._taken(f"{number}.{name}", "layers", self._model.get_submodule(_module(tensor)))

    def _head(self) -> Iterator[Matrix]:
        yield from self._taken("head", "head", self._model.get_submodule(_module(self._reader.head)))

    def _taken(self, role: str, part: str, module: Any) -> Iterator[Matrix]:
        scheme, width = self._target.scheme_for(role, part), int(module.weight.shape[1])
        if scheme is None or scheme.by_row or block_for(width, self._target.int4.block, scheme.blocks) is None:
            return
        yield Matrix(role, part, module, width)

    def _rows(self, number: int, name: str) -> Rows:
        return rows_of(self._reader, self._height, number, name, self._source.dimensions)

    def _height(self, tensor: str) -> int:
        return int(self._model.get_parameter(tensor).shape[0])

    def hold(self, matrix: Matrix, made: Quantized, factors: Factors | None = None) -> None:
        """Lets torch's weights be what the integers stand for, so that later layers read what they will read. Weights
        that the family does not store row by row stay, and so does the head, which nothing follows. `factors` are those
        that the matrices were rescaled by before they were rounded."""
        if matrix.part != "layers":
            return
        number, _, name = matrix.role.partition(".")
        rows = self._rows(int(number), name)
        values = rescaled(matrix.role, made.dequantize(), inverse(factors or {}))
        for i, tensor in enumerate(rows.tensors):
            weight, own = self._model.get_parameter(tensor), rows.which == i
            if tuple(weight.shape) != (int(own.sum()), made.shape[1]):
                continue
            with torch.no_grad():
                rounded = torch.from_numpy((values[own] / rows.factor[own, None]).astype(np.float32))
                weight[torch.from_numpy(rows.row[own])] = rounded.to(weight.dtype)


def _module(tensor: str) -> str:
    return tensor.removesuffix(".weight")
