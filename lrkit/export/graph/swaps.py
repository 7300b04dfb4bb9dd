"""Adapters at run time: what a program holds of its adapter, as inputs that have a default.

ONNX Runtime lets a run replace such values by those of an adapter file (`RunOptions.add_active_adapter`), also where
they are read inside a loop. They are the sides of all branches (branches.py), and what else of a checkpoint is trained
beside a base: routers, constants of latent steps, and the latent token's row of the head, which such a program
multiplies apart from the others.

Place in the pipeline: bundle.py calls `open_swaps` on a built program; lrkit/export/swapped.py writes the files.
"""

import numpy as np
import onnx_ir as ir

from lrkit.export.graph.branches import side_named
from lrkit.export.weights.source import HEAD_ROW, Source


def open_swaps(model: ir.Model) -> tuple[str, ...]:
    """Makes every such weight of a program an input that may be left out, whose rank is free. Returns their names."""
    names = tuple(name for name in model.graph.initializers if is_swap(name))
    for name in names:
        value = model.graph.initializers[name]
        assert value.shape is not None
        sizes = [int(str(size)) for size in value.shape]
        if name.endswith((".adapter.A", ".adapter.B")):
            # A name of its own for each: what has one name is of one length to ONNX Runtime, which would give queries,
            # keys and values, of three ranks together, the memory of one.
            axis, rank = 0 if name.endswith("A") else 1, f"rank of {name}"
            value.shape = ir.Shape([rank if i == axis else size for i, size in enumerate(sizes)])
        model.graph.inputs.append(value)
    return names


def is_swap(name: str) -> bool:
    """Whether a weight of that name belongs to the adapter."""
    return name.endswith((".adapter.A", ".adapter.B")) or name.startswith(("routers.", "latent.constant", HEAD_ROW))


def swap_value(name: str, source: Source) -> np.ndarray:
    """That weight, float32, of another checkpoint over the same base."""
    side = side_named(name, source.low_rank)
    return np.ascontiguousarray(source.weight(name) if side is None else side, np.float32)
