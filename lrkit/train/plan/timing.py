"""Time of an update and of a run by a device's datasheet: a range, for nobody reaches the datasheet.

Place in the pipeline: UpdateWork + DeviceSheet -> `seconds_of` -> plan.py. What is assumed stands in `Assumptions`.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from lrkit.config import Config
from lrkit.data.expected import Expected
from lrkit.profile.ceilings.devices import DeviceSheet
from lrkit.profile.ceilings.roofline import Rates
from lrkit.train.plan.model import PlannedModel
from lrkit.train.plan.work import UpdateWork

_Share = Annotated[float, Field(gt=0.0, le=1.0)]
_Rate = Annotated[float, Field(gt=0.0, le=1e6)]


class Assumptions(Config):
    """What a plan takes for granted; `--assume KEY=VALUE` replaces a value."""

    utilisation: tuple[_Share, _Share] = (0.2, 0.5)
    """Share of the datasheet's arithmetic and bandwidth that a run reaches, from the worst to the best that is
    expected."""
    launch_usec: tuple[_Rate, _Rate] = (4.0, 12.0)
    """Least and most microseconds until the next kernel runs, however little one computes."""
    kernels_of_a_pass: int = Field(default=200, ge=0, le=100_000)
    """Kernels of one layer with its adapters, forward and backward."""
    link_gb_per_sec: tuple[_Rate, _Rate] = (20.0, 200.0)
    """Between devices, in 10^9 bytes a second: from PCI Express 4 to NVLink."""
    runtime_gb: float = Field(default=1.0, ge=0.0, le=100.0)
    """What CUDA, cuBLAS and torch take before the first weight, in 10^9 bytes."""
    data: Expected | None = None
    """Samples, all alike; null: drawn from the data, or what the data set says of itself."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in ("utilisation", "launch_usec", "link_gb_per_sec"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is [{low}, {high}]; give the smaller one first")
        return self


def rates_of(sheet: DeviceSheet, model: PlannedModel) -> Rates:
    """The datasheet's rates for the type in which the run computes; arithmetic unknown where it does not say."""
    tflops = (sheet.fp16_tflops if model.half else None) or sheet.fp32_tflops
    return Rates(sheet.memory_gb_per_sec * 1e9, None if tflops is None else tflops * 1e12)


def seconds_of(work: UpdateWork, rates: Rates, assumed: Assumptions, launches: bool) -> tuple[float, float]:
    """Least and most seconds of an update's computation, phase after phase: of arithmetic, memory and, where the device
    has `launches` to wait for, these, the slowest one."""
    low, high = assumed.utilisation
    spans: list[tuple[float, float]] = []
    for name, phase in work.phases.items():
        ideal = rates.seconds(phase)
        quick, slow = (work.passes[name] * assumed.kernels_of_a_pass * usec / 1e6 for usec in assumed.launch_usec)
        least, most = ideal / high, ideal / low
        spans.append((max(least, quick), max(most, slow)) if launches else (least, most))
    return sum(least for least, _ in spans), sum(most for _, most in spans)


def communication_seconds(model: PlannedModel, devices: int, assumed: Assumptions) -> tuple[float, float]:
    """Least and most seconds in which the gradients of an update are summed over all devices, in a ring; as if nothing
    of it ran beside the backward pass."""
    sent = communicated_bytes(model, devices)
    slow, fast = assumed.link_gb_per_sec
    return sent / fast / 1e9, sent / slow / 1e9


def communicated_bytes(model: PlannedModel, devices: int) -> float:
    """Bytes that each device sends for one update."""
    return 2 * (devices - 1) / devices * 4 * sum(model.trained.values())
