"""Towers that tests trace more than once are traced once: torch.onnx takes seconds for the smallest of them.

Most exports of the tests are of one tiny tower. What is kept is the result of the real call for a module with the same
classes, values and inputs, and each export gets a copy of it.
"""

import copy
import hashlib
import io
import pickle
import sys
from collections.abc import Mapping
from types import CellType, FunctionType
from typing import Any

MODULE = "lrkit.export.graph.tracing"
MOST_WEIGHTS = 1_000_000
_kept: dict[str, Any] = {}


def keep_traces() -> None:
    """From now on, where that module is there already; it is not imported for this."""
    tracing: Any = sys.modules.get(MODULE)
    if tracing is None or getattr(tracing.exported, "keeps", False):
        return
    real = tracing.exported

    def exported(module: Any, example: Mapping[str, Any], free: Mapping[int, Any]) -> Any:
        key = key_of(module, example, free)
        if key is None:
            return real(module, example, free)
        if key not in _kept:
            # A copy: the graph refers to the weights, which a test may alter afterwards.
            _kept[key] = real(copy.deepcopy(module), example, free)
        return _kept[key].clone()

    exported.keeps = True  # pyright: ignore[reportFunctionMemberAccess]
    tracing.exported = exported


def key_of(module: Any, example: Mapping[str, Any], free: Mapping[int, Any]) -> str | None:
    """Equal for equal modules and inputs; None where that cannot be told, or for a tower that is not tiny."""
    if sum(parameter.numel() for parameter in module.parameters()) > MOST_WEIGHTS:
        return None
    written = io.BytesIO()
    try:
        _Values(written).dump((type(module), module, dict(example), {axis: str(dim) for axis, dim in free.items()}))
    except (pickle.PicklingError, TypeError, AttributeError, ValueError):
        return None
    return hashlib.sha256(written.getvalue()).hexdigest()


class _Values(pickle.Pickler):
    """Writes tensors and functions by what they hold: nothing is ever read back."""

    def reducer_override(self, obj: Any) -> Any:
        import torch

        if isinstance(obj, torch.Tensor):
            values = obj.detach().cpu().contiguous()
            held = values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
            return str, (f"{obj.dtype} {tuple(obj.shape)} {hashlib.sha256(held).hexdigest()}",)
        if isinstance(obj, FunctionType):
            code = obj.__code__
            return tuple, ((obj.__module__, obj.__qualname__, code.co_code, str(code.co_consts), obj.__closure__),)
        if isinstance(obj, CellType):
            return tuple, (("cell", obj.cell_contents),)
        return NotImplemented
