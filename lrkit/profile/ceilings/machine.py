"""What can run here and how fast: engines, GPUs, measured rates. Behind `lrkit doctor`.

Place in the pipeline: lrkit/environment.py says what is installed; `inspect_machine` says what that can do on this
machine, in about two seconds.
"""

from dataclasses import asdict
from typing import Any

from lrkit.cores import usable_cores
from lrkit.gpus import Gpus, find_gpus, torch_can_use
from lrkit.profile.ceilings.advice import cpu_flags, engine_advice
from lrkit.profile.ceilings.rates import MeasuredRates, measure_cpu, measure_device
from lrkit.provenance import installed_version
from lrkit.runtime.engines.common.row import EngineState
from lrkit.runtime.engines.table import engine_rows


def inspect_machine(measure: bool = True) -> dict[str, Any]:
    """Engines, GPUs with their compute capability, and, with `measure`, rates; plain JSON values, unknown is null."""
    gpus = find_gpus()
    return {
        "engines": [asdict(engine) for engine in engine_states(gpus)],
        "engine_advice": engine_advice(cpu_flags(), installed_version("openvino") is not None),
        "gpus": known_gpus(gpus),
        "no_gpu_reason": gpus.reason,
        "rates": [rates.to_dict() for rates in _rates(gpus)] if measure else None,
    }


def engine_states(gpus: Gpus) -> list[EngineState]:
    """All engines that lrkit can use, usable or not; first what runs checkpoints."""
    return [row.state(gpus) for row in sorted(engine_rows(), key=lambda row: not row.checkpoints)]


def known_gpus(gpus: Gpus) -> list[dict[str, str | None]]:
    """Name, compute capability, memory and driver of each GPU; null where the driver cannot say."""
    return [{**gpu.summary(), "compute_capability": gpu.arch, "index": str(gpu.index)} for gpu in gpus.found]


def _rates(gpus: Gpus) -> list[MeasuredRates]:
    """Of the CPU with all its threads through numpy; of each number type, and of a GPU, through torch."""
    found = [measure_cpu(usable_cores())]
    if installed_version("torch") is None:
        return found
    places = ["cpu", *(["cuda"] if gpus.found and torch_can_use() else [])]
    return found + [measure_device(place, dtype) for place in places for dtype in ("float32", "bfloat16")]
