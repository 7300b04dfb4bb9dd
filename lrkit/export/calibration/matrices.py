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

from lrkit.export.targets.target import Target
from lrkit.export.weights.integers import Quantized, block_for
from lrkit.export.weights.packing import packed
from lrkit.export.weights.reader import WeightReader, reader_of
from lrkit.export.weights.source import Source, array
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
    """Those of a reasoner on torch, whose adapter has been merged."""

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
            (tensor, *_), _ = self._parts(number, name)
            yield from self._taken(f"{number}.{name}", "layers", self._model.get_submodule(_module(tensor)))

    def _head(self) -> Iterator[Matrix]:
        yield from self._taken("head", "head", self._model.get_submodule(_module(self._reader.head)))

    def _taken(self, role: str, part: str, module: Any) -> Iterator[Matrix]:
        scheme, width = self._target.scheme_for(role, part), int(module.weight.shape[1])
        if scheme is None or scheme.by_row or block_for(width, self._target.int4.block, scheme.blocks) is None:
            return
        yield Matrix(role, part, module, width)

    def _parts(self, number: int, name: str) -> tuple[list[str], np.ndarray]:
        """(tensors that a matrix of a layer is packed from, (out, 3): row of the tensor, its number, factor)."""
        tensors: list[str] = []

        def part(one: str, kind: str) -> np.ndarray:
            names: list[str] = []

            def read(tensor: str) -> np.ndarray:
                names.append(tensor)
                return array(self._model.get_parameter(tensor)).copy()

            rows = len(self._reader.layer(read, number, one, kind))
            tensors.append(names[-1])
            return np.stack([np.arange(rows), np.full(rows, len(tensors) - 1), np.ones(rows)], axis=1)

        return tensors, packed(part, name, self._source.dimensions)

    def hold(self, matrix: Matrix, made: Quantized) -> None:
        """Lets torch's weights be what the integers stand for, so that later layers read what they will read. Weights
        that the family does not store row by row stay, and so does the head, which nothing follows."""
        if matrix.part != "layers":
            return
        number, _, name = matrix.role.partition(".")
        tensors, places = self._parts(int(number), name)
        values, factor = made.dequantize(), places[:, 2:]
        rows, which = (np.rint(places[:, i] / factor[:, 0]).astype(np.int64) for i in (0, 1))
        for i, tensor in enumerate(tensors):
            weight, own = self._model.get_parameter(tensor), which == i
            if tuple(weight.shape) != (int(own.sum()), made.shape[1]):
                continue
            with torch.no_grad():
                rounded = torch.from_numpy((values[own] / factor[own]).astype(np.float32))
                weight[torch.from_numpy(rows[own])] = rounded.to(weight.dtype)


def _module(tensor: str) -> str:
    return tensor.removesuffix(".weight")
