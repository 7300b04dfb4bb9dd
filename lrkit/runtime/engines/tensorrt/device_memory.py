"""Memory, copies and captured work on one NVIDIA GPU, by cuda-python or by torch, whichever is there.

Place in the pipeline: device_array.py keeps arrays in it; session.py enqueues engines on its stream.
Torch-free unless torch is all there is. All work goes through one stream, so work happens in the order it was enqueued.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from lrkit.errors import LrkitError, MissingExtraError, one_line
from lrkit.gpus import torch_can_use


class DeviceMemory(Protocol):
    """Addresses are of the device; every call but `synchronize` may return before its work is done."""

    name: str
    """cuda-python or torch."""
    stream: int
    """Handle of the CUDA stream."""

    def activate(self) -> None:
        """Makes the device the current one of this thread."""
        ...

    def allocate(self, num_bytes: int) -> int:
        """Address of new memory, kept until the process ends.

        Raises:
            LrkitError: there is not enough.
        """
        ...

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copies a contiguous array to the device."""
        ...

    def download(self, array: np.ndarray, address: int) -> None:
        """Copies into a contiguous array; complete after `synchronize`."""
        ...

    def synchronize(self) -> None:
        """Waits for the stream.

        Raises:
            LrkitError: something enqueued failed.
        """
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records what `work` enqueues as a CUDA graph, without running it; the result runs it.

        Raises:
            LrkitError: it cannot be recorded.
        """
        ...


def open_memory(index: int, extra: str) -> DeviceMemory:
    """Memory of GPU `index`; `extra` is the part of lrkit that brings cuda-python.

    Raises:
        MissingExtraError: neither cuda-python nor torch with CUDA is installed.
        LrkitError: CUDA cannot start on that GPU.
    """
    runtime = _cuda_python()
    if runtime is not None:
        return CudaPythonMemory(runtime, index)
    torch = _torch_with_cuda()
    if torch is not None:
        return TorchMemory(torch, index)
    raise MissingExtraError(
        "an engine's buffers need cuda-python, or torch built with CUDA, and neither is installed; "
        f'pip install cuda-python (or "lrkit[{extra}]", which brings it)'
    )


def _cuda_python() -> Any | None:
    """Its module `runtime`, under the name of now or of before 12.8; None where it is not installed."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _torch_with_cuda() -> Any | None:
    return import_module("torch") if torch_can_use() else None


class CudaPythonMemory:
    """By the package cuda-python."""

    name = "cuda-python"

    def __init__(self, runtime: Any, index: int) -> None:
        self._cuda, self._index = runtime, index
        self.activate()
        self._stream = self._do(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self.stream = int(self._stream)

    def activate(self) -> None:
        self._do(self._cuda.cudaSetDevice(self._index))

    def allocate(self, num_bytes: int) -> int:
        return int(self._do(self._cuda.cudaMalloc(num_bytes)))

    def upload(self, address: int, array: np.ndarray) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do(self._cuda.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._stream))

    def download(self, array: np.ndarray, address: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do(self._cuda.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self._stream))

    def synchronize(self) -> None:
        self._do(self._cuda.cudaStreamSynchronize(self._stream))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do(cuda.cudaStreamBeginCapture(self._stream, mode))
        try:
            work()
        except BaseException:
            cuda.cudaStreamEndCapture(self._stream)  # the stream is of no use until the capture has ended
            raise
        graph = self._do(cuda.cudaStreamEndCapture(self._stream))
        runnable = self._do(cuda.cudaGraphInstantiate(graph, 0))
        self._do(cuda.cudaGraphDestroy(graph))
        return lambda: self._do(cuda.cudaGraphLaunch(runnable, self._stream))

    def _do(self, result: tuple[Any, ...]) -> Any:
        """The value of a call, which comes behind its error code."""
        code, *values = result
        if int(code) != 0:
            name = self._cuda.cudaGetErrorName(code)[1].decode()
            said = self._cuda.cudaGetErrorString(code)[1].decode()
            raise LrkitError(f"CUDA failed on GPU {self._index} ({name}: {said}); see what else uses that GPU")
        return values[0] if values else None


class TorchMemory:
    """By torch."""

    name = "torch"

    def __init__(self, torch: Any, index: int) -> None:
        self._torch, self._device = torch, torch.device("cuda", index)
        self._kept: dict[int, Any] = {}
        self._stream = torch.cuda.Stream(self._device)
        self.stream = int(self._stream.cuda_stream)

    def activate(self) -> None:
        self._torch.cuda.set_device(self._device)

    def allocate(self, num_bytes: int) -> int:
        try:
            block = self._torch.empty(num_bytes, dtype=self._torch.uint8, device=self._device)
        except self._torch.OutOfMemoryError as error:
            raise LrkitError(f"{self._device} has too little memory for {num_bytes} bytes; see what uses it") from error
        self._kept[int(block.data_ptr())] = block
        return int(block.data_ptr())

    def upload(self, address: int, array: np.ndarray) -> None:
        if array.nbytes:
            with self._torch.cuda.stream(self._stream):
                # torch warns about memory that may not be written.
                held = self._torch.from_numpy(_bytes(np.require(array, requirements="W")))
                self._kept[address][: array.nbytes].copy_(held, non_blocking=True)

    def download(self, array: np.ndarray, address: int) -> None:
        if array.nbytes:
            with self._torch.cuda.stream(self._stream):
                self._torch.from_numpy(_bytes(array)).copy_(self._kept[address][: array.nbytes], non_blocking=True)

    def synchronize(self) -> None:
        try:
            self._stream.synchronize()
        except RuntimeError as error:
            raise LrkitError(f"CUDA failed on {self._device} ({one_line(error)}); look at nvidia-smi") from error

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = self._torch.cuda.CUDAGraph()
        try:
            with self._torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            raise LrkitError(f"CUDA cannot record this work ({one_line(error)}); leave cuda_graphs out") from error

        def launch() -> None:
            with self._torch.cuda.stream(self._stream):
                graph.replay()

        return launch


def _bytes(array: np.ndarray) -> np.ndarray:
    """The array's own memory as bytes."""
    return array.reshape(-1).view(np.uint8)
