"""Writes graphs with their weights beside them, each tensor once, however many names and graphs use it.

Place in the pipeline: bundle.py and steps.py save built models through `save_models`.

Why names share a tensor: TensorRT-RTX 1.7.1 cannot build a network in which the prompt and a loop read one INT4
constant (dialect.py gives each loop a name of its own); its engine keeps equal constants once, and so does the file.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_to_external

SMALL = 1024
"""Bytes up to which a tensor stays inside the graph."""


def has_twins(model: ir.Model) -> bool:
    """Whether some tensor goes under several names, so that it would be written several times inside the graph."""
    return any(count > 1 for count in Counter(id(value.const_value) for value in _large(model)).values())


def save_models(models: Mapping[str, ir.Model], folder: Path, data: str) -> None:
    """Writes each model to its file in `folder`, and the weights of all to `data` there; the models stay as they
    were."""
    tensors = {id(value.const_value): value.const_value for model in models.values() for value in _large(model)}
    written = convert_tensors_to_external([t for t in tensors.values() if t is not None], folder, data)
    outside = dict(zip(tensors, written, strict=True))
    for file, model in models.items():
        held = [(value, value.const_value) for value in _large(model)]
        try:
            for value, tensor in held:
                value.const_value = outside[id(tensor)]
            ir.save(model, folder / file)
        finally:
            for value, tensor in held:
                value.const_value = tensor


def _large(model: ir.Model) -> list[ir.Value]:
    values = model.graph.initializers.values()
    return [value for value in values if value.const_value is not None and value.const_value.nbytes > SMALL]
