"""Writes graphs with their weights beside them, each tensor once, however many names and graphs use it.

Place in the pipeline: weight_store.py gives each weight to a `WeightFile` as soon as it is made. The weights
of a large program are then on disk, and the graph holds only where they lie. bundle.py and step_graphs.py save built
models through `save_models`.

Why names share a tensor: TensorRT-RTX 1.7.1 cannot build a network in which the prompt and a loop read one INT4
constant (weight_store.py gives each loop a name of its own). Its engine keeps equal constants once, and so does the
file.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

from lrkit.errors import ExportError, is_write_failure, one_line

SMALL = 1024
"""Bytes up to which a tensor stays inside the graph."""
IN_MEMORY = 64 << 20
"""Bytes of weights that a program may hold; with more it keeps them in a file of their own, which ONNX Runtime maps
instead of copying."""


class WeightFile:
    """The weights of one program: held up to `in_memory` bytes, then written one behind the other as they come."""

    def __init__(self, folder: Path, name: str, in_memory: int = IN_MEMORY) -> None:
        self.folder, self.name, self.in_memory = folder, name, in_memory
        self.taken = 0
        """Bytes given to `take`."""
        self._begun = False

    @property
    def overflows(self) -> bool:
        """Whether there were more bytes than may be held."""
        return self.taken > self.in_memory

    def take(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """The tensor itself where it may be held, else what says where it lies in the file. Raises as `write`."""
        self.taken += tensor.nbytes
        return self.write(tensor) if self.overflows and tensor.nbytes > SMALL else tensor

    def write(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Puts a tensor behind those that were written; the first begins a new file.

        Raises:
            OSError: the file cannot be written.
        """
        if isinstance(tensor, ir.ExternalTensor):
            return tensor
        with (self.folder / self.name).open("ab" if self._begun else "wb") as file:
            self._begun = True
            offset = file.tell()
            cast(Any, tensor).tofile(file)  # what the protocol lacks, though every class has it
        shape = ir.Shape([int(str(size)) for size in tensor.shape])
        return ir.ExternalTensor(
            self.name, offset, tensor.nbytes, tensor.dtype, shape=shape, name=str(tensor.name), base_dir=self.folder
        )  # fmt: skip


def has_twins(model: ir.Model) -> bool:
    """Whether some tensor goes under several names, so that it would be written several times inside the graph."""
    return any(count > 1 for count in Counter(id(value.const_value) for value in _large(model)).values())


def save_models(
    models: Mapping[str, ir.Model], folder: Path, data: str, weights: WeightFile | None = None
) -> None:  # fmt: skip
    """Writes each model to its file in `folder`, and the weights of all to `data` there, behind those that lie there
    already where `weights` is that file; the models stay as they were. Raises as `save_model`."""
    weights = weights or WeightFile(folder, data)
    assert (weights.folder, weights.name) == (folder, data)
    tensors = {id(value.const_value): value.const_value for model in models.values() for value in _large(model)}
    outside = {key: weights.write(tensor) for key, tensor in tensors.items() if tensor is not None}
    for file, model in models.items():
        held = [(value, value.const_value) for value in _large(model)]
        try:
            for value, tensor in held:
                value.const_value = outside[id(tensor)]
            save_model(model, folder / file)
        finally:
            for value, tensor in held:
                value.const_value = tensor


def save_model(model: ir.Model, path: Path) -> None:
    """Writes a graph with what it holds inside.

    Raises:
        OSError: the file cannot be written.
        ExportError: onnx cannot write it, as when it is larger than 2 GB.
    """
    try:
        ir.save(model, path)
    except Exception as error:  # protobuf's errors have no common base
        if is_write_failure(error):
            raise
        raise ExportError(
            f"{path.name} cannot be written ({one_line(error)}); a graph file holds at most 2 GB: export a smaller "
            "model, or with fewer limits"
        ) from error


def _large(model: ir.Model) -> list[ir.Value]:
    values = model.graph.initializers.values()
    return [value for value in values if value.const_value is not None and value.const_value.nbytes > SMALL]
