"""The interface of a TensorRT engine over ONNX Runtime, in the memory of this process.

It is given shapes and addresses as an engine is, reads its inputs at those addresses and writes its outputs there, so
that what `EngineSession` does around a run can be tested by answers. It shows nothing about TensorRT or a GPU: whether
the real classes have these methods is what tests/unit/test_tensorrt_api.py looks up.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from lrkit.contract.bundle.io_spec import IoSpec, TensorSpec
from lrkit.runtime.engines.programs.step_session import NUMPY_TYPES
from lrkit.runtime.engines.tensorrt.library import TensorRT
from lrkit.runtime.engines.tensorrt.plan import Range, Shape

TYPES = {"int64": "INT64", "float32": "FLOAT", "float16": "HALF", "uint8": "UINT8", "bool": "BOOL"}


class HostEngine:
    """What `EngineSession` asks of an `ICudaEngine`."""

    def __init__(self, library: TensorRT, file: Path, spec: IoSpec, profiles: Sequence[dict[str, Range]]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.module, self.spec, self.profiles = library.module, spec, profiles
        self.tensors: dict[str, TensorSpec] = {one.name: one for one in (*spec.inputs, *spec.outputs)}
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, number: int) -> str:
        return list(self.tensors)[number]

    def get_tensor_mode(self, name: str) -> Any:
        inputs = [one.name for one in self.spec.inputs]
        return self.module.TensorIOMode.INPUT if name in inputs else self.module.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self.module.DataType, TYPES[self.tensors[name].dtype])

    def get_tensor_shape(self, name: str) -> Shape:
        return tuple(axis if isinstance(axis, int) else -1 for axis in self.tensors[name].shape)

    def get_tensor_location(self, name: str) -> Any:
        return self.module.TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, number: int) -> Range:
        return self.profiles[number][name]


class HostContext:
    """What `EngineSession` asks of an `IExecutionContext`."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine = engine
        self.profile = 0
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.runs = 0

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.profile = number
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self.shapes[name] = tuple(shape)
        bounds = self.engine.profiles[self.profile].get(name)
        if bounds is None:
            return tuple(shape) == self.engine.get_tensor_shape(name)
        return all(low <= size <= high for low, size, high in zip(bounds[0], shape, bounds[2], strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        return self.engine.get_tensor_shape(name)

    def execute_async_v3(self, stream: int) -> bool:
        self.runs += 1
        spec = self.engine.spec
        feed = {one.name: self._read(one) for one in spec.inputs}
        names = [one.name for one in spec.outputs]
        for name, array in zip(names, self.engine.session.run(names, feed), strict=True):
            found = np.ascontiguousarray(array)
            if name in self.allocators:
                address = self.allocators[name].reallocate_output_async(name, 0, found.nbytes, 256, stream)
                self.allocators[name].notify_shape(name, self.engine.module.Dims(list(found.shape)))
            else:
                address = self.addresses[name]
            ctypes.memmove(address, found.ctypes.data, found.nbytes)
        return True

    def _read(self, spec: TensorSpec) -> np.ndarray:
        array = np.empty(self.shapes[spec.name], NUMPY_TYPES[spec.dtype])
        ctypes.memmove(array.ctypes.data, self.addresses[spec.name], array.nbytes)
        return array
