"""How OpenVINO runs programs: what a caller may choose, and the properties that come of it. Torch-free.

Place in the pipeline: `--engine-option`, `engine_options` -> `OpenVinoOptions` -> engine.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lrkit.config import Config
from lrkit.cores import find_cores
from lrkit.runtime.engines.openvino.library import core, here, is_virtual

Precision = Literal["auto", "f32", "bf16", "f16"]


class OpenVinoOptions(Config):
    """How programs are run."""

    device: str = "CPU"
    """CPU, GPU, GPU.1, NPU, AUTO, ...: OpenVINO's names."""
    precision: Precision = "auto"
    """Number type of the products of floats. auto: the one in which the export proved the program equal to torch on
    OpenVINO; of a bundle that was made for another engine f32 on a CPU, and elsewhere the one it is written in."""
    int8_activations: bool | None = None
    """Whether activations may be rounded to int8 where weights are integers; null: as in the export, as above, and no
    for a bundle that was made for another engine."""
    threads: int | None = Field(default=None, ge=1)
    """Of one answer, on a CPU; None: as many as the process may use (lrkit/cores.py)."""
    cache: bool | Path | None = None
    """A folder of the user's own that keeps what was compiled, so that the next start is quick; made if need be.
    true: lrkit/openvino in the user's cache folder (XDG_CACHE_HOME, or ~/.cache). Null: nothing is kept, as it is twice
    as large as the program and more. See kept.py for what is trusted and how much is kept."""
    properties: dict[str, str | bool | int | float] = {}
    """OpenVINO's own properties, by its names, as NUM_STREAMS; they come before all others."""


@dataclass(frozen=True)
class Numbers:
    """How products are computed."""

    precision: str
    """Of floats: f32, bf16 or f16."""
    int8_activations: bool = False
    """Beside weights that are integers."""


def properties(options: OpenVinoOptions, device: str, numbers: Numbers) -> dict[str, Any]:
    """What a program is compiled with. Defaults that a device does not know are left out; what was asked for is not."""
    if is_virtual(device):  # what chooses between devices does not pass on what it does not know itself
        each = {one: _of_device(options, one, numbers) for one in here()}
        return {"PERFORMANCE_HINT": "LATENCY", "DEVICE_PROPERTIES": each, **options.properties}
    return {**_of_device(options, device, numbers), **options.properties}


def _of_device(options: OpenVinoOptions, device: str, numbers: Numbers) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": numbers.precision,
        "INFERENCE_NUM_THREADS": options.threads or find_cores().threads,
        # Pinned threads of two processes wait for the same cores while others are idle.
        "ENABLE_CPU_PINNING": False,
    }
    if not numbers.int8_activations:
        wanted["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # OpenVINO's own default rounds them
    asked = {"INFERENCE_PRECISION_HINT"} if options.precision != "auto" else set[str]()
    asked |= {"INFERENCE_NUM_THREADS"} if options.threads is not None else set()
    known = supported(device)
    return {key: value for key, value in wanted.items() if key in known or key in asked}


def supported(device: str) -> frozenset[str]:
    """Names of the properties that a device knows; none where it does not say."""
    try:
        return frozenset(str(name) for name in core().get_property(device, "SUPPORTED_PROPERTIES"))
    except RuntimeError:
        return frozenset()
