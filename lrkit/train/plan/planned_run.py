"""A run that is planned: what a recipe's model and batches need on one device of a spread, and how long they take.

Place in the pipeline: recipe, Opened, datasheet, Spread -> `PlannedRun` -> memory, work and seconds -> plan.py, which
makes the report.
"""

from dataclasses import dataclass, replace

from lrkit.profile.ceilings.devices import DeviceSheet
from lrkit.train.plan.batches import BatchSizes, StageSizes, widest
from lrkit.train.plan.kept import CPU, GPU, Kernels
from lrkit.train.plan.memory import Memory, checkpointed, memory_of, sharded
from lrkit.train.plan.model import PlannedModel
from lrkit.train.plan.opened import Opened
from lrkit.train.plan.spread import Spread, exposed, sent_by, sharded_sent
from lrkit.train.plan.timing import Assumptions, rates_of, seconds_of, sending_seconds
from lrkit.train.plan.work import UpdateWork, batch_work, mean_work
from lrkit.train.recipe import Recipe
from lrkit.train.share import Share

_BACKWARD = (0.5, 2 / 3)
"""Share of an update's computation that is on the way back, of LoRA and of all weights: sums hide behind it."""


@dataclass(frozen=True)
class UpdateTime:
    """Seconds of one update: [least, most]."""

    compute: tuple[float, float]
    sent: list[float]
    """Sending, as if nothing ran beside it."""
    waited: list[float]
    """Of it, what the update waits for: the least where it hides behind the computation, else all."""

    @property
    def update(self) -> list[float]:
        return [self.compute[i] + self.waited[i] for i in (0, 1)]

    @property
    def share(self) -> list[float]:
        """Of an update, the waiting: at best, and where the computation is quick and nothing hides."""
        return [self.waited[0] / self.update[0], self.waited[1] / (self.compute[0] + self.waited[1])]


@dataclass(frozen=True)
class PlannedRun:
    """What the parts of a report are made from."""

    recipe: Recipe
    opened: Opened
    device: str | None
    sheet: DeviceSheet | None
    spread: Spread
    assumed: Assumptions

    @property
    def kernels(self) -> Kernels:
        return CPU if self.sheet is not None and self.sheet.kind == "cpu" else GPU

    @property
    def model(self) -> PlannedModel:
        return self.opened.model

    @property
    def share(self) -> Share:
        """Of one device."""
        return Share(0, self.spread.total, self.recipe.accumulate)

    @property
    def runtime(self) -> float:
        """Bytes that a GPU's libraries take."""
        return self.assumed.runtime_gb * 1e9 if self.kernels is GPU else 0.0

    def held(self, in_parts: bool) -> "PlannedRun":
        """The same run with the recipe's `shard` as said."""
        recipe = self.recipe.model_copy(update={"shard": in_parts})
        model = replace(self.opened.model, recipe=recipe)
        return replace(self, recipe=recipe, opened=replace(self.opened, model=model))

    def part(self, batch: BatchSizes) -> BatchSizes:
        """What one device holds of a batch at once."""
        return batch.of(-(-batch.samples // self.share.parts))

    def widest(self) -> tuple[BatchSizes, str]:
        """One device's part of the batch that needs most memory, and its stage."""
        found = [(self.part(widest(stage.batches)), stage.stage.name) for stage in self.opened.stages]
        return max(found, key=lambda one: self.peak(one[0]))

    def memory(self, part: BatchSizes) -> Memory:
        """Of one device."""
        host, rounds = self.kernels is CPU, self.share.rounds
        return memory_of(self.model, part, rounds, self.spread.total, self.kernels, self.opened.patch_values, host)

    def peak(self, part: BatchSizes, memory: Memory | None = None) -> float:
        """The most that one device needs at once, of `memory` or as the recipe says."""
        memory = memory or self.memory(part)
        again = self.recipe.gradient_checkpointing
        return checkpointed(self.model, part, memory, self.kernels) if again else memory.peak

    def sharded_peak(self, part: BatchSizes) -> float:
        """The same with sharded weights (FSDP)."""
        whole = self.held(in_parts=False)
        model = whole.model
        largest = max(model.counts.weights["layers"] / model.num_layers, model.weights.get("embedding", 0))
        return whole.peak(part, sharded(whole.memory(part), self.spread.total, largest * model.compute_bytes))

    def work(self, stage: StageSizes) -> UpdateWork:
        """Of one update on one device: the mean of its parts of the stage's batches, in each of its rounds."""
        parts = self.spread.total if self.model.in_parts else 1
        found = [batch_work(self.model, self.part(batch), self.kernels, parts) for batch in stage.batches]
        return mean_work(found).times(self.share.rounds)

    def time(self, work: UpdateWork, is_sharded: bool = False) -> UpdateTime | None:
        """None where the datasheet does not say how fast the device is."""
        if self.sheet is None or (rates := rates_of(self.sheet, self.model)).flops_per_sec is None:
            return None
        compute = seconds_of(work, rates, self.assumed, self.sheet.kind != "cpu")
        if is_sharded:  # weights of the next layer come while this one computes
            sent, hidden = sharded_sent(self.model, self.spread, self.share.rounds), compute[0]
        else:  # sums of whole weights run beside the last batch's way back, and those of parts behind it
            sent = sent_by(self.model, self.spread, self.share.rounds)
            backward = compute[0] * _BACKWARD[self.model.full] / self.share.rounds
            hidden = 0.0 if self.model.in_parts else backward
        seconds = sending_seconds(sent, self.sheet, self.assumed)
        return UpdateTime(compute, seconds, exposed(seconds, hidden))
