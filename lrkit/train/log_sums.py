"""Figures of the updates since the last line of the log: sums on the device, read back once a line.

Place in the pipeline: the loop adds each batch -> `Sums` -> one record of metrics.jsonl.
"""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from lrkit.train.accelerator import mean_over_processes
from lrkit.train.share import Share


class Sums:
    """Sums by name. They are a part of the saved state: a resumed run writes the line that the whole run would."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Nothing is summed yet."""
        self.values = {}

    def load(self, values: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from saved sums."""
        self.values = {name: value.to(device) for name, value in values.items()}

    def reshare(self, before: Share, now: Share) -> None:
        """Saved sums as processes of another number would have them. What is counted a batch follows the batches that
        a process has of an update, tokens follow the processes, and gradients are of the whole update anyway."""
        if before.processes == now.processes:
            return
        whole = before.processes / now.processes
        rounds = now.rounds / before.rounds
        factors = {"right": whole, "tokens": whole, "grad_norm": 1.0, "clipped": 1.0}
        self.values = {name: value * factors.get(name, rounds) for name, value in self.values.items()}

    def add(self, **values: Tensor) -> None:
        """Adds to the sums; nothing is read back from the device."""
        for name, value in values.items():
            value = value.detach().float()
            self.values[name] = self.values[name] + value if name in self.values else value

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes, by the names of the log; nothing is summed afterwards. All processes take part."""
        sums = {name: float(mean_over_processes(accelerator, self.values[name])) for name in sorted(self.values)}
        self.clear()
        batches = sums["batches"]
        found = {"loss": sums["loss"] / batches, "token_accuracy": sums["right"] / max(1.0, sums["tokens"])}
        found |= {name: sums[name] / batches for name in ("speech", "distill", "pointing") if name in sums}
        if "clipped" in sums:
            found["grad_norm"] = sums["grad_norm"] / sums["clipped"]
        return found
