"""Arrays that stay on the device between the runs of graphs, over a pool of buffers that are used again.

Place in the pipeline: device_memory.py -> `Pool` -> `DeviceArray`, which session.py returns and
programs/step_session.py hands from one graph to the next without a copy to the host. Torch-free.
"""

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrkit.runtime.engines.tensorrt.device_memory import DeviceMemory

_SMALLEST = 256
"""Bytes: TensorRT wants an address for an empty tensor too."""


@dataclass(frozen=True, order=True)
class Buffer:
    """A piece of device memory; buffers are ordered by age."""

    number: int
    """Counted from the first that its pool allocated."""
    address: int
    size: int
    """Bytes."""
    what: str
    """What it is for."""


class Pool:
    """Buffers of a device in powers of two; one that nothing refers to any more is handed out again.

    All work on them goes through one stream, so a buffer may be handed out before the device is done with it. Buffers
    are kept apart by what they are for, and the oldest free one comes first: so a loop whose state goes in and out sees
    the same few addresses again, which work recorded as a CUDA graph depends on.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self.work = threading.RLock()
        """Held while something is enqueued: a stream that records a CUDA graph must not be given other work."""
        self.num_bytes = 0
        """Held of the device, free or not."""
        self._num_buffers = 0
        self._free: dict[tuple[str, int], list[Buffer]] = {}
        # Reentrant: an array may be collected while another is being made.
        self._lock = threading.RLock()

    def empty(self, dtype: Any, shape: Sequence[int], what: str = "") -> "DeviceArray":
        """An array of whatever the buffer holds; `what` it is for."""
        return DeviceArray(self, np.dtype(dtype), tuple(shape), what)

    def put(self, array: np.ndarray, what: str = "") -> "DeviceArray":
        """A copy on the device."""
        held = np.ascontiguousarray(array).reshape(array.shape)
        made = self.empty(held.dtype, held.shape, what)
        self.memory.upload(made.address, held)
        return made

    def take(self, num_bytes: int, what: str) -> Buffer:
        """A buffer of at least that many bytes."""
        size = max(_SMALLEST, 1 << max(0, num_bytes - 1).bit_length())
        with self._lock:
            if free := self._free.get((what, size)):
                free.sort(reverse=True)
                return free.pop()
            address = self.memory.allocate(size)
            self.num_bytes += size
            self._num_buffers += 1
            return Buffer(self._num_buffers, address, size, what)

    def give(self, buffer: Buffer) -> None:
        """Takes a buffer back."""
        with self._lock:
            self._free.setdefault((buffer.what, buffer.size), []).append(buffer)


class DeviceArray:
    """An array on the device; numpy takes it wherever it takes an array, and copies it then."""

    def __init__(
        self,
        pool: Pool,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        what: str = "",
        inside: "DeviceArray | None" = None,
    ) -> None:
        """In a buffer of its own, or at the beginning of that of another array."""
        self.dtype, self.shape = dtype, shape
        self.pool = pool
        self._copy: np.ndarray | None = None
        self._inside = inside
        if inside is not None:
            self.address = inside.address
            return
        buffer = pool.take(self.nbytes, what)
        self.address = buffer.address
        weakref.finalize(self, pool.give, buffer).atexit = False

    @property
    def nbytes(self) -> int:
        """Of the content."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def numpy(self) -> np.ndarray:
        """The content on the host; fetched once, for an array is not written again after it was given out."""
        if self._copy is None:
            copy = np.empty(self.shape, self.dtype)
            with self.pool.work:
                self.pool.memory.activate()
                self.pool.memory.download(copy, self.address)
                self.pool.memory.synchronize()
            self._copy = copy
        return self._copy

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self.numpy()
        return found.astype(dtype) if dtype is not None and found.dtype != dtype else found

    def __getitem__(self, index: Any) -> Any:
        return self.numpy()[index]

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}, {self.shape})"
