"""Energy and memory of an NVIDIA GPU, asked of the driver's own library (NVML): no package is needed.

Place in the pipeline: meters.py. Written after nvml.h; its energy was read on an H200, its memory never.
Where the library or a counter is missing, the readings are None.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Nvml:
    """One GPU. CUDA and NVML may count GPUs in different orders; on a machine with one it does not matter."""

    def __init__(self, index: int) -> None:
        self._handle: Any = None
        try:
            self._library: Any = ctypes.CDLL(_LIBRARY)
        except OSError:
            return
        handle = ctypes.c_void_p()
        if self._library.nvmlInit_v2() == 0 and (
            self._library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == 0
        ):
            self._handle = handle

    def joules(self) -> float | None:
        """Since the driver was loaded; the counter is in millijoules."""
        value = ctypes.c_ulonglong()
        return value.value / 1000 if self._ask("nvmlDeviceGetTotalEnergyConsumption", value) else None

    def used_bytes(self) -> int | None:
        """Memory in use on the GPU, by all processes."""
        memory = _Memory()
        return int(memory.used) if self._ask("nvmlDeviceGetMemoryInfo", memory) else None

    def _ask(self, name: str, into: Any) -> bool:
        """Fills `into`; False where the GPU cannot say."""
        if self._handle is None:
            return False
        function: Callable[..., int] | None = getattr(self._library, name, None)
        return function is not None and function(self._handle, ctypes.byref(into)) == 0
