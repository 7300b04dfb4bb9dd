"""Datasheets of devices, for planning: the least time an answer could take there. Never a measurement.

Place in the pipeline: profiles/devices/*.yaml -> `load_sheet` -> `plan` -> profile/report.py, by `--plan`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lrkit.config import Config, load_config
from lrkit.profile.ceilings.roofline import Rates, Work
from lrkit.resources import find_resource


class DeviceSheet(Config):
    """Peaks that a manufacturer states."""

    description: str
    """The device's name, as sold."""
    kind: Literal["gpu", "cpu", "module"]
    """module: a computer with a GPU of its own memory bus, such as a Jetson."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory in 10^9 bytes; null where it is the buyer's choice."""
    memory_gb_per_sec: float = Field(gt=0)
    """Memory bandwidth in 10^9 bytes a second."""
    fp32_tflops: float | None = Field(default=None, gt=0)
    """Dense, without tensor cores."""
    fp16_tflops: float | None = Field(default=None, gt=0)
    """Dense, tensor cores, accumulated in float32."""
    int8_tops: float | None = Field(default=None, gt=0)
    """Dense."""
    link_gb_per_sec: float | None = Field(default=None, gt=0)
    """To the other devices of its machine, in 10^9 bytes a second and one direction: NVLink, else PCI Express."""
    watts: float | None = Field(default=None, gt=0)
    """What it may draw at most: thermal design power, or the largest power mode of a module."""
    source: str
    """Where the figures come from."""
    checked: tuple[str, ...] = ()
    """Public pages, other than the source, that the figures were compared with."""
    unchecked: tuple[str, ...] = ()
    """Fields that no page was found for: take them from the source before you rely on them."""
    note: str = ""
    """What a reader must know."""

    @model_validator(mode="after")
    def _unchecked_are_fields(self) -> Self:
        unknown = [name for name in self.unchecked if getattr(self, name, None) is None]
        if unknown:
            raise ValueError(f"unchecked names {', '.join(unknown)}, which the sheet does not state; leave it out")
        return self

    @property
    def rates(self) -> Rates:
        """With fp16 arithmetic where stated, else fp32."""
        tflops = self.fp16_tflops or self.fp32_tflops
        return Rates(self.memory_gb_per_sec * 1e9, None if tflops is None else tflops * 1e12)


def load_sheet(name: str) -> DeviceSheet:
    """The sheet of a shipped name or a file. Raises as `find_resource` and `load_config`."""
    return load_config(DeviceSheet, find_resource("device", name))


def plan(name: str, sheet: DeviceSheet, work: Mapping[str, Mapping[str, Work]]) -> dict[str, Any]:
    """For each run (name -> phase -> work) the least seconds on that device, from its datasheet."""
    least = {run: _least(sheet.rates, list(phases.values())) for run, phases in work.items()}
    return {"device": name, "sheet": sheet.model_dump(mode="json"), "least_sec": least, "measured": False}


def _least(rates: Rates, phases: Sequence[Work]) -> float:
    return sum(rates.seconds(phase) for phase in phases)
