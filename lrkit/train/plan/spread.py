"""How a run is spread over devices and machines, and what it sends between them for one update.

Place in the pipeline: `--devices`, `--machines` -> `Spread` -> timing.py and plan.py. Nothing here was measured: bytes
are counted, and bandwidths are a datasheet's or assumed.

Sums go in two levels, as NCCL takes them: within a machine, then between machines with all its network cards at once,
so that a byte crosses the network of a machine once in each direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lrkit.errors import UserError
from lrkit.train.plan.model import PlannedModel

MOST = 65_536


@dataclass(frozen=True)
class Spread:
    """Equal machines with equal devices."""

    devices: int = 1
    """Of each machine."""
    machines: int = 1

    @property
    def total(self) -> int:
        return self.devices * self.machines


@dataclass(frozen=True)
class Sent:
    """Bytes of one update."""

    within: float
    """Each device sends to the others of its machine."""
    between: float
    """Each machine sends to the others."""

    def seconds(self, link: float, network: float) -> float:
        """At so many bytes a second of a device to its neighbours, and of a machine to the others."""
        return self.within / link + self.between / network


def spread_of(devices: int, machines: int) -> Spread:
    """Raises `UserError` for numbers that no run has."""
    for name, count in (("--devices", devices), ("--machines", machines)):
        if not 1 <= count <= MOST:
            what = name.removeprefix("--").removesuffix("s")
            raise UserError(f"{name} is {count}; a run takes 1 {what} or more, and 65,536 at most")
    if devices * machines > MOST:
        raise UserError(
            f"{machines} machines of {devices} devices are {devices * machines:,} devices; a run takes 65,536 at most"
        )
    return Spread(devices, machines)


def sent_by(model: PlannedModel, spread: Spread, rounds: int) -> Sent:
    """As the recipe says; `rounds`: batches of an update on each device."""
    return parts_sent(model, spread, rounds) if model.in_parts else whole_sent(model, spread)


def whole_sent(model: PlannedModel, spread: Spread) -> Sent:
    """Side by side (DDP): the gradients of what trains are summed once an update, in float32."""
    gradients = 4.0 * sum(model.trained.values())
    return Sent(2 * _others(spread.devices) * gradients, 2 * _others(spread.machines) * gradients)


def parts_sent(model: PlannedModel, spread: Spread, rounds: int) -> Sent:
    """In parts (lrkit/train/parts.py): gradients are summed into their parts after every batch, in float32, and an
    update's weights are gathered once, in the type that they compute with."""
    trained = sum(model.trained.values())
    amount = 4.0 * trained * rounds + 4.0 * trained - 2.0 * model.narrowed
    return Sent(_others(spread.devices) * amount, _others(spread.machines) * amount)


def sharded_sent(model: PlannedModel, spread: Spread, rounds: int) -> Sent:
    """Sharded (FSDP, ZeRO-3): for every batch all weights are gathered on the way forward and on the way back, in the
    type of the products, and gradients are summed into the part of each device."""
    weights = model.compute_bytes * float(sum(model.weights.values()))
    amount = rounds * (2 * weights + 4.0 * sum(model.trained.values()))
    return Sent(_others(spread.devices) * amount, _others(spread.machines) * amount)


def exposed(sent: Sequence[float], hidden: float) -> list[float]:
    """Of [least, most] seconds of sending, those that an update waits for: none of the least that fits beside `hidden`
    seconds of computing, and all of the most."""
    return [max(0.0, sent[0] - hidden), sent[1]]


def _others(count: int) -> float:
    """The share of a ring that is not one's own."""
    return (count - 1) / count
