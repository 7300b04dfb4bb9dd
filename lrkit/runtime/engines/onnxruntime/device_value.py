"""Values that ONNX Runtime leaves on its device between the runs of graphs. Torch-free.

Place in the pipeline: session.py binds them as outputs and takes them as inputs; programs/step_session.py hands them
from one graph to the next without a copy to the host.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrkit.contract.bundle.io_spec import ORT_TYPES

Device = tuple[str, int]
"""Kind and number of a device, as ONNX Runtime names it."""


class DeviceValue:
    """A value of ONNX Runtime (its OrtValue); numpy takes it wherever it takes an array, and copies it then."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.dtype = np.dtype(ORT_TYPES.get(value.data_type(), "object"))
        self.shape = tuple(value.shape())
        self._copy: np.ndarray | None = None

    def numpy(self) -> np.ndarray:
        """The content on the host; fetched once, for a value is not written again after it was given out."""
        copy = self._copy
        if copy is None:
            copy = self._copy = np.asarray(self.value.numpy())
        return copy

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self.numpy()
        return found.astype(dtype) if dtype is not None and found.dtype != dtype else found

    def __getitem__(self, index: Any) -> Any:
        return self.numpy()[index]


def run_bound(
    session: Any, device: Device, output_names: Sequence[str], input_feed: Mapping[str, Any], options: Any
) -> list[DeviceValue]:
    """Outputs of those names, in that order, left on the device. The feed may hold what an earlier run gave. Raises
    what ONNX Runtime raises."""
    binding = session.io_binding()
    held: list[np.ndarray] = []  # the binding knows only where they lie
    for name, value in input_feed.items():
        if isinstance(value, DeviceValue):
            binding.bind_ortvalue_input(name, value.value)
        else:
            held.append(np.ascontiguousarray(value).reshape(value.shape))
            binding.bind_cpu_input(name, held[-1])
    for name in output_names:
        binding.bind_output(name, *device)
    session.run_with_iobinding(binding, options)
    return [DeviceValue(value) for value in binding.get_outputs()]
