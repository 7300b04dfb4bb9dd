"""The NVIDIA GPUs of this machine, asked of the driver itself: no package is needed to learn that there is none.

Place in the pipeline: tensorrt/engine.py asks before it loads an engine; `lrkit doctor` may show the list. Torch-free.
"""

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from lrkit.errors import UserError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# cuda.h: CUdevice_attribute, and the result of cuInit on a machine with a driver and no GPU.
_MAJOR, _MINOR, _NO_DEVICE = 75, 76, 100


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    index: int
    """As CUDA counts them."""
    name: str
    """As the driver names it."""
    arch: str
    """Compute capability: "sm89" for 8.9."""


@dataclass(frozen=True)
class Gpus:
    """All of them, or why there is none."""

    found: tuple[Gpu, ...]
    reason: str | None = None
    """Where none was found: what the driver said."""


def find_gpus() -> Gpus:
    """Asks the driver. Never raises: a machine without a GPU is not at fault."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return Gpus((), f"there is no NVIDIA driver ({_LIBRARY} cannot be loaded)")
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


def _describe(driver: Any, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return Gpu(index, name.value.decode(errors="replace"), f"sm{major.value}{minor.value}")
