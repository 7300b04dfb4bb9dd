"""What can run here and how fast: engines, GPUs, measured rates. Behind `lrkit doctor`.

Place in the pipeline: lrkit/environment.py says what is installed; `inspect_machine` says what that can do on this
machine, in about two seconds.
"""

from dataclasses import asdict, dataclass
from typing import Any

from lrkit.cores import usable_cores
from lrkit.environment import nvidia_gpus, onnxruntime_providers
from lrkit.profile.ceilings.rates import MeasuredRates, measure_cpu, measure_device
from lrkit.provenance import installed_version
from lrkit.runtime.engines.common.nvidia import Gpus, find_gpus
from lrkit.runtime.engines.tensorrt.library import KINDS
from lrkit.runtime.engines.tensorrt.library import installed_version as engine_version


@dataclass(frozen=True)
class EngineState:
    """Whether an engine can answer questions on this machine."""

    name: str
    """As `--engine` takes it; torch runs checkpoints."""
    usable: bool
    version: str | None
    """Of its package; None where it is not installed."""
    runs_on: str
    """Devices, or why it cannot run."""
    command: str | None
    """What brings it; None where that is no command, or nothing is missing."""


def inspect_machine(measure: bool = True) -> dict[str, Any]:
    """Engines, GPUs with their compute capability, and, with `measure`, rates; plain JSON values, unknown is null."""
    gpus = find_gpus()
    return {
        "engines": [asdict(engine) for engine in engine_states(gpus)],
        "gpus": known_gpus(gpus),
        "no_gpu_reason": gpus.reason,
        "rates": [rates.to_dict() for rates in _rates(gpus)] if measure else None,
    }


def engine_states(gpus: Gpus) -> list[EngineState]:
    """All engines that lrkit can use, usable or not."""
    return [_torch(gpus), _onnxruntime(gpus), *(_tensorrt(kind, gpus) for kind in KINDS)]


def known_gpus(gpus: Gpus) -> list[dict[str, str | None]]:
    """Name, compute capability, memory and driver of each GPU; the last two by nvidia-smi, null without it."""
    reported = nvidia_gpus()
    found: list[dict[str, str | None]] = []
    for number, gpu in enumerate(gpus.found):
        # CUDA counts fastest first, nvidia-smi by bus: only the name can tell which is which.
        same = [other for other in reported if other["name"] == gpu.name]
        more = same[0] if same else {}
        found.append(
            {"name": gpu.name, "compute_capability": gpu.arch, "index": str(number), "memory": more.get("memory"),
             "driver": more.get("driver")}
        )  # fmt: skip
    return found


def _torch(gpus: Gpus) -> EngineState:
    version = installed_version("torch")
    if version is None:
        return EngineState("torch", False, None, "not installed", 'pip install "lrkit[train]"')
    if gpus.found and version.endswith("+cpu"):
        said = "cpu; the installed torch has no CUDA, so the GPU stays idle"
        return EngineState("torch", True, version, said, "pip install --force-reinstall torch")
    return EngineState("torch", True, version, "cpu, cuda" if gpus.found else "cpu", None)


def _onnxruntime(gpus: Gpus) -> EngineState:
    version = installed_version("onnxruntime") or installed_version("onnxruntime-gpu")
    providers = onnxruntime_providers()
    if not providers:
        return EngineState("onnxruntime", False, version, "cannot be imported", "pip install --upgrade lrkit")
    names = ", ".join(name.removesuffix("ExecutionProvider").lower() for name in providers)
    missing = gpus.found and "CUDAExecutionProvider" not in providers
    return EngineState("onnxruntime", True, version, names, 'pip install "lrkit[gpu]"' if missing else None)


def _tensorrt(kind: Any, gpus: Gpus) -> EngineState:
    version = engine_version(kind)
    if not gpus.found:
        can = ", but builds engines for other machines" if version else ""
        return EngineState(kind, False, version, f"no NVIDIA GPU here{can}", None if version else _extra(kind))
    names = ", ".join(f"{gpu.name} ({gpu.arch})" for gpu in gpus.found)
    if version is None:
        return EngineState(kind, False, None, f"not installed; would run on {names}", _extra(kind))
    return EngineState(kind, True, version, names, None)


def _extra(kind: str) -> str:
    return f'pip install "lrkit[{kind}]"'


def _rates(gpus: Gpus) -> list[MeasuredRates]:
    """Of the CPU with all its threads through numpy; of each number type, and of a GPU, through torch."""
    found = [measure_cpu(usable_cores())]
    if installed_version("torch") is None:
        return found
    import torch

    places = ["cpu", *(["cuda"] if gpus.found and torch.cuda.is_available() else [])]
    return found + [measure_device(place, dtype) for place in places for dtype in ("float32", "bfloat16")]
