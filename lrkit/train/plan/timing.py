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
from lrkit.train.plan.spread import Sent
from lrkit.train.plan.work import UpdateWork

_Share = Annotated[float, Field(gt=0.0, le=1.0)]
_Rate = Annotated[float, Field(gt=0.0, le=1e6)]
_OF_LINK = (0.4, 0.8)
"""Share of a link's bandwidth that sums over devices reach."""
_UNKNOWN_LINK = (20.0, 200.0)


class Assumptions(Config):
    """What a plan takes for granted; `--assume KEY=VALUE` replaces a value."""

    utilisation: tuple[_Share, _Share] = (0.2, 0.6)
    """Share of the datasheet's arithmetic and bandwidth that a run reaches, from the worst to the best that is
    expected. Others have published 0.25 to 0.61 (benchmarks/published_training.yaml)."""
    launch_usec: tuple[_Rate, _Rate] = (4.0, 12.0)
    """Least and most microseconds until the next kernel runs, however little one computes."""
    kernels_of_a_pass: int = Field(default=200, ge=0, le=100_000)
    """Kernels of one layer with its adapters, forward and backward."""
    link_gb_per_sec: tuple[_Rate, _Rate] | None = None
    """Between devices of a machine, in 10^9 bytes a second of each and one direction; null: 0.4 to 0.8 of the
    datasheet's link, or from PCI Express 4 to NVLink where it names none."""
    network_gb_per_sec: tuple[_Rate, _Rate] = (10.0, 320.0)
    """Between machines, in 10^9 bytes a second of each and one direction: from 0.8 of one Ethernet of 100 Gb/s to 0.8
    of eight InfiniBand of 400 Gb/s."""
    runtime_gb: float = Field(default=1.0, ge=0.0, le=100.0)
    """What CUDA, cuBLAS and torch take before the first weight, in 10^9 bytes."""
    data: Expected | None = None
    """Samples, all alike; null: drawn from the data, or what the data set says of itself."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in ("utilisation", "launch_usec", "link_gb_per_sec", "network_gb_per_sec"):
            low, high = getattr(self, name) or (0.0, 0.0)
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


def link_of(sheet: DeviceSheet, assumed: Assumptions) -> tuple[float, float]:
    """Slowest and fastest 10^9 bytes a second between devices of a machine."""
    if assumed.link_gb_per_sec is not None:
        return assumed.link_gb_per_sec
    if sheet.link_gb_per_sec is None:
        return _UNKNOWN_LINK
    low, high = _OF_LINK
    return low * sheet.link_gb_per_sec, high * sheet.link_gb_per_sec


def sending_seconds(sent: Sent, sheet: DeviceSheet, assumed: Assumptions) -> list[float]:
    """Least and most seconds, as if nothing of it ran beside the computation."""
    (slow, fast), (weak, strong) = link_of(sheet, assumed), assumed.network_gb_per_sec
    return [sent.seconds(fast * 1e9, strong * 1e9), sent.seconds(slow * 1e9, weak * 1e9)]
