"""Which NVIDIA GPUs are here, of what kind, with what memory and driver: the one place that looks for them.

The driver's own libraries are asked (CUDA's, and NVML, which counts memory and energy), so no package is needed to
learn that there is none. Torch-free, but for `torch_can_use`, which asks an installed torch whether it may use one.
Place in the pipeline: engines ask before they load, `lrkit doctor` and reports list what is there, and the profiler
reads energy. Written after cuda.h and nvml.h.
"""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from lrkit.errors import UserError

_CUDA = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
# cuda.h: CUdevice_attribute, and the result of cuInit on a machine with a driver and no GPU.
_MAJOR, _MINOR, _NO_DEVICE = 75, 76, 100


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    index: int
    """As CUDA counts them, CUDA_VISIBLE_DEVICES heeded."""
    name: str
    """As the driver names it."""
    arch: str
    """Compute capability: "sm89" for 8.9."""
    memory_bytes: int | None = None
    """All of it; None where the driver cannot say."""
    driver: str | None = None
    """Version of the driver."""
    bus: str | None = None
    """Its PCI bus id, by which NVML finds it: CUDA and NVML may count in different orders."""

    def summary(self) -> dict[str, str | None]:
        """Name, memory and driver, for a report."""
        memory = None if self.memory_bytes is None else f"{self.memory_bytes >> 20} MiB"
        return {"name": self.name, "memory": memory, "driver": self.driver}


@dataclass(frozen=True)
class Gpus:
    """All of them, or why there is none."""

    found: tuple[Gpu, ...]
    reason: str | None = None
    """Where none was found: what the driver said."""


def find_gpus() -> Gpus:
    """Asks the driver. Never raises: a machine without a GPU is not at fault."""
    try:
        driver = ctypes.CDLL(_CUDA)
    except OSError:
        return Gpus((), f"there is no NVIDIA driver ({_CUDA} cannot be loaded)")
    if code := driver.cuInit(0):
        said = "the NVIDIA driver sees no GPU" if code == _NO_DEVICE else "the NVIDIA driver cannot start"
        return Gpus((), f"{said} (cuInit gave {code})")
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        return Gpus((), "the NVIDIA driver sees no GPU")
    return Gpus(tuple(_describe(driver, index) for index in range(count.value)))


def require_gpu(index: int, what: str) -> Gpu:
    """The GPU of that number; `what` needs it, and begins the sentence.

    Raises:
        UserError: there is no GPU, or none of that number.
    """
    gpus = find_gpus()
    if not gpus.found:
        raise UserError(
            f"{what} runs on an NVIDIA GPU, and on this machine {gpus.reason}; "
            "use engine onnxruntime here, or take the bundle to a machine with a GPU"
        )
    if index >= len(gpus.found):
        names = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus.found)
        raise UserError(f"{what} was asked to run on GPU {index}, and this machine has {names}; give one of them")
    return gpus.found[index]


def torch_can_use() -> bool:
    """Whether an installed torch may use a GPU: it must be built with CUDA, for this driver."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _describe(driver: Any, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, bus = ctypes.create_string_buffer(256), ctypes.create_string_buffer(64)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    known = driver.cuDeviceGetPCIBusId(bus, len(bus), device) == 0
    place = bus.value.decode(errors="replace") if known else None
    meter = GpuMeter(place)
    return Gpu(
        index, name.value.decode(errors="replace"), f"sm{major.value}{minor.value}", meter.total_bytes(),
        meter.driver_version(), place,
    )  # fmt: skip


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@cache
def _nvml() -> Any:
    """NVML, started once in a process; None where it is not there."""
    try:
        library = ctypes.CDLL(_NVML)
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


class GpuMeter:
    """Memory and energy of one GPU, by NVML; each None where it cannot say."""

    def __init__(self, bus: str | None) -> None:
        """`bus` as in `Gpu.bus`."""
        self._handle: Any = None
        handle, library = ctypes.c_void_p(), _nvml()
        if bus is not None and library is not None:
            found = library.nvmlDeviceGetHandleByPciBusId_v2(bus.encode(), ctypes.byref(handle))
            self._handle = handle if found == 0 else None

    def joules(self) -> float | None:
        """Since the driver was loaded; the counter is in millijoules."""
        value = ctypes.c_ulonglong()
        return value.value / 1000 if self._ask("nvmlDeviceGetTotalEnergyConsumption", value) else None

    def total_bytes(self) -> int | None:
        """All memory of the GPU."""
        memory = _Memory()
        return int(memory.total) if self._ask("nvmlDeviceGetMemoryInfo", memory) else None

    def driver_version(self) -> str | None:
        """Of the driver that runs it."""
        text = ctypes.create_string_buffer(96)
        if self._handle is None or _nvml().nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text))) != 0:
            return None
        return text.value.decode(errors="replace")

    def _ask(self, name: str, into: Any) -> bool:
        """Fills `into`; False where the GPU cannot say."""
        if self._handle is None:
            return False
        function: Callable[..., int] | None = getattr(_nvml(), name, None)
        return function is not None and function(self._handle, ctypes.byref(into)) == 0
