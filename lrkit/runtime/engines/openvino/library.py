"""OpenVINO itself: imported once, its devices by name, its errors in one line. Torch-free; the package is imported when
it is asked for.

Place in the pipeline: row.py, engine.py and the rooms above ask `load_library`.
"""

import re
from functools import cache
from typing import Any

from lrkit.errors import UserError, clean, did_you_mean, one_line, require
from lrkit.provenance import installed_version as version_of

PACKAGE = EXTRA = "openvino"
VIRTUAL = ("AUTO", "MULTI", "HETERO", "BATCH")
"""OpenVINO's names of what chooses between devices, or splits a program over several."""
_PLACE = re.compile(r"Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:|\b[\w./-]+\.(?:cpp|hpp):\d+:?")
# Lines of an error that say only that there is one.
_EMPTY = (
    "FrontEnd API failed", "Model wasn't fully converted", "Summary", "Conversion is failed for",
)  # fmt: skip
_CALLED = re.compile(r"While validating (?:ONNX )?node '.*?'(?:\s*with friendly_name '.*?')?:?", re.DOTALL)


def installed_version() -> str | None:
    """Version of the package as pip knows it, without importing it; None where it is not installed."""
    return version_of(PACKAGE)


@cache
def load_library() -> Any:
    """The module openvino.

    Raises:
        MissingExtraError: it is not installed, or cannot be imported.
    """
    return require(PACKAGE, EXTRA)


@cache
def core() -> Any:
    """OpenVINO's `Core`, one for the process. Raises as `load_library`."""
    return load_library().Core()


def here() -> list[str]:
    """Devices of this machine by OpenVINO's names: CPU, GPU.0, NPU. Raises as `load_library`."""
    return [str(name) for name in core().available_devices]


def full_name(device: str) -> str:
    """What the maker calls a device; the device's own name where OpenVINO does not say."""
    try:
        return clean(str(core().get_property(device, "FULL_DEVICE_NAME"))).strip()
    except RuntimeError:  # OpenVINO's own class
        return device


def capabilities(device: str) -> tuple[str, ...]:
    """Number types in which a device is quick, as OpenVINO names them: FP32, BF16, INT8."""
    try:
        return tuple(str(name) for name in core().get_property(device, "OPTIMIZATION_CAPABILITIES"))
    except RuntimeError:
        return ()


def is_virtual(device: str) -> bool:
    """Whether it is no device but what chooses one, or splits a program over several."""
    return device.partition(":")[0] in VIRTUAL


def check_device(name: str) -> str:
    """The name of a device as OpenVINO takes it: CPU, GPU, GPU.1, NPU, AUTO, AUTO:GPU,CPU.

    Raises:
        UserError: no such device here.
    """
    asked = name.strip().upper()
    chooser, _, listed = asked.partition(":")
    found = here()
    parts = [part.lstrip("-") for part in listed.split(",") if part] if chooser in VIRTUAL else [asked]
    kinds = {one.partition(".")[0] for one in found}
    for part in parts:
        known = part in found or part in kinds or (part == "CPU.0" and "CPU" in found)
        if not known:
            raise UserError(
                f"OpenVINO finds no device {one_line(repr(name), 80)} here, only {', '.join(found) or 'none'}; give "
                f"one of them or AUTO, or install the device's driver{did_you_mean(part, [*found, *VIRTUAL])}"
            )
    return asked


def said(error: Exception) -> str:
    """OpenVINO's words in one line, without the places in its source."""
    text = _CALLED.sub(" ", _PLACE.sub(" ", str(error)))
    lines = [line.strip(" .:-") for line in text.splitlines()]
    kept = list(dict.fromkeys(line for line in lines if line and not line.startswith(_EMPTY)))
    return one_line("; ".join(kept) or type(error).__name__)
