"""Works out what a run of an engine needs before the device is touched: shapes, bytes, profile. Pure functions.

Place in the pipeline: io_spec.py + a feed -> session.py. The functions take an engine's facts as plain values, so that
they can be tested on a parsed network where no engine can be loaded. Torch-free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrkit.contract.bundle.io_spec import DType, IoSpec, TensorSpec
from lrkit.errors import CapacityError
from lrkit.runtime.engines.programs.step_session import NUMPY_TYPES

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
"""Smallest, usual and largest shape of an input."""

_NAMES: dict[str, DType] = {"INT64": "int64", "FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "BOOL": "bool"}
"""TensorRT's names of the types that programs have."""


@dataclass(frozen=True)
class IoTensor:
    """An input or output as an engine, or a parsed network, has it."""

    name: str
    dtype: str
    """As TensorRT names it: FLOAT, HALF, INT64, BOOL, ..."""
    shape: Shape
    """-1 where the size is free."""


@dataclass(frozen=True)
class Output:
    """An output of one run."""

    name: str
    dtype: Any
    """numpy's."""
    shape: Shape | None
    """None where only the run itself tells the size."""

    @property
    def num_bytes(self) -> int | None:
        """Of the content."""
        return None if self.shape is None else int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def differences(spec: IoSpec, inputs: Sequence[IoTensor], outputs: Sequence[IoTensor]) -> list[str]:
    """What an engine has other than declared; empty when it is the declared program.

    Their order is the builder's. An input that nothing reads may be missing, for a builder leaves it out.
    """
    found: list[str] = []
    for kind, declared, real in (("input", spec.inputs, inputs), ("output", spec.outputs, outputs)):
        names, there = [one.name for one in declared], {one.name: one for one in real}
        missing = kind == "output" and not set(names) <= set(there)
        if missing or not set(there) <= set(names):
            found.append(f"the {kind}s are {list(there)}; declared are {names}")
            continue
        for one in declared:
            if one.name in there:
                found += _tensor_differences(kind, one, there[one.name])
    return found


def _tensor_differences(kind: str, declared: TensorSpec, real: IoTensor) -> list[str]:
    found: list[str] = []
    if _NAMES.get(real.dtype) != declared.dtype:
        found.append(f"{kind} {declared.name} is {real.dtype}; declared is {declared.dtype}")
    fixed = tuple(size if isinstance(size, int) else -1 for size in declared.shape)
    # A builder may know more than the declaration: a free axis may have become a number, but not another number.
    fits = len(fixed) == len(real.shape) and all(
        want in (size, -1) for want, size in zip(fixed, real.shape, strict=True)
    )
    if not fits:
        found.append(f"{kind} {declared.name} has shape {list(real.shape)}; declared is {list(declared.shape)}")
    return found


def plan_outputs(spec: IoSpec, shapes: Mapping[str, Shape]) -> list[Output]:
    """The outputs of a run whose inputs have these `shapes`, in the order of `spec`.

    An axis of an output has the size that the inputs give its name; where none has that name, only the run tells.
    """
    sizes: dict[str, int] = {}
    for given in spec.inputs:
        if given.name in shapes:
            named = zip(given.shape, shapes[given.name], strict=True)
            sizes |= {axis: size for axis, size in named if isinstance(axis, str)}
    return [Output(one.name, NUMPY_TYPES[one.dtype], _sized(one.shape, sizes)) for one in spec.outputs]


def _sized(shape: Sequence[int | str], sizes: Mapping[str, int]) -> Shape | None:
    found = [axis if isinstance(axis, int) else _axis(axis, sizes) for axis in shape]
    return None if None in found else tuple(size for size in found if size is not None)


def _axis(name: str, sizes: Mapping[str, int]) -> int | None:
    """An axis may be a sum of others, as L+P."""
    parts = [name] if name in sizes else name.split("+")
    return sum(sizes[part] for part in parts) if all(part in sizes for part in parts) else None


def choose_profile(profiles: Sequence[Mapping[str, Range]], shapes: Mapping[str, Shape], name: str) -> int:
    """Number of the profile whose bounds hold `shapes` and whose usual shapes are nearest; `name` is the engine's.

    Raises:
        CapacityError: no profile does; the message names the first input that is out of bounds in the widest one.
    """
    fitting = [number for number, profile in enumerate(profiles) if not _outside(profile, shapes)]
    if fitting:
        return min(fitting, key=lambda number: _distance(profiles[number], shapes))
    widest = max(profiles, key=lambda profile: sum(int(np.prod(most)) for _, _, most in profile.values()))
    wrong = _outside(widest, shapes)[0]
    least, _, most = widest[wrong]
    raise CapacityError(
        f"{name}: the input {wrong} has shape {list(shapes[wrong])}, and the engine was built for {list(least)} to "
        f"{list(most)}; give a smaller prompt or picture, or export again with larger limits"
    )


def _outside(profile: Mapping[str, Range], shapes: Mapping[str, Shape]) -> list[str]:
    """Inputs whose shape is not within the profile."""
    return [
        name
        for name, (least, _, most) in profile.items()
        if name in shapes
        and not (
            len(least) == len(shapes[name])
            and all(low <= size <= high for low, size, high in zip(least, shapes[name], most, strict=True))
        )
    ]


def _distance(profile: Mapping[str, Range], shapes: Mapping[str, Shape]) -> int:
    return sum(
        abs(size - usual)
        for name, (_, middle, _) in profile.items()
        if name in shapes
        for size, usual in zip(shapes[name], middle, strict=True)
    )
