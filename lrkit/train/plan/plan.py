"""`lrkit train --plan`: what a run would need and how long it would take, without a weight and without having run.

    recipe -> opened.py -> batches -> memory.py, work.py, timing.py -> the report that the verb prints

Every figure is an estimate: `measured` is false, and `assumed` and `not_counted` say what it rests on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lrkit.errors import UserError
from lrkit.profile.ceilings.devices import DeviceSheet, load_sheet
from lrkit.resources import list_resources
from lrkit.train.curriculum import num_updates
from lrkit.train.plan.batches import BatchSizes, StageSizes, widest
from lrkit.train.plan.kept import CPU, GPU, Kernels, chunks_of
from lrkit.train.plan.memory import Memory, checkpointed, memory_of, sharded
from lrkit.train.plan.model import PlannedModel
from lrkit.train.plan.opened import Opened, open_plan, refuse_processes
from lrkit.train.plan.timing import Assumptions, communication_seconds, rates_of, seconds_of
from lrkit.train.plan.work import UpdateWork, batch_work, mean_work
from lrkit.train.recipe import Recipe
from lrkit.train.share import Share, refuse_share

Report = dict[str, Any]
SCHEMA_VERSION = 1
NOT_COUNTED = (
    "validation, checkpoints and reading data",
    "memory that torch's allocator holds in pieces too small to use",
    "norms, softmax and activation functions among the operations",
)


@dataclass(frozen=True)
class _Plan:
    """What the parts of a report are made from."""

    recipe: Recipe
    opened: Opened
    device: str | None
    sheet: DeviceSheet | None
    devices: int
    assumed: Assumptions
    kernels: Kernels

    @property
    def model(self) -> PlannedModel:
        return self.opened.model

    @property
    def share(self) -> Share:
        """Of one device."""
        return Share(0, self.devices, self.recipe.accumulate)

    def part(self, batch: BatchSizes) -> BatchSizes:
        """What one device holds of a batch at once."""
        return batch.of(-(-batch.samples // self.share.parts))

    def memory(self, part: BatchSizes) -> Memory:
        """Of one device."""
        host, rounds = self.kernels is CPU, self.share.rounds
        return memory_of(self.model, part, rounds, self.devices, self.kernels, self.opened.patch_values, host)

    def peak(self, part: BatchSizes) -> float:
        """The most that one device needs at once."""
        memory = self.memory(part)
        again = self.recipe.gradient_checkpointing
        return checkpointed(self.model, part, memory, self.kernels) if again else memory.peak

    def work(self, stage: StageSizes) -> UpdateWork:
        """Of one update on one device: the mean of its parts of the stage's batches, in each of its rounds."""
        found = [batch_work(self.model, self.part(batch), self.kernels) for batch in stage.batches]
        return mean_work(found).times(self.share.rounds)


def plan_training(
    recipe: Recipe, device: str | None = None, devices: int = 1, assumed: Assumptions | None = None
) -> Report:
    """The plan of a run on `devices` devices of one kind. `device` is a datasheet's name or file; None: some GPU, and
    all datasheets beside it.

    Raises:
        UserError: a number of devices that no run has; no such datasheet.
        CheckpointError: `init` is not there, or a model of the hub that cannot be reached and has no shape.
        ConfigError: the settings do not fit the model.
        DataError: data that are there cannot be read.
    """
    refuse_processes(devices)
    refuse_share(recipe, devices)
    assumed = assumed or Assumptions()
    sheet = None if device is None else load_sheet(device)
    gpu = sheet is None or sheet.kind != "cpu"
    opened = open_plan(recipe, assumed.data, gpu)
    plan = _Plan(recipe, opened, device, sheet, devices, assumed, GPU if gpu else CPU)
    stages = [_stage(plan, stage) for stage in opened.stages]
    memory = _memory(plan)
    report: Report = {
        "schema_version": SCHEMA_VERSION,
        "measured": False,
        "recipe": recipe.name,
        "model": {"from": opened.model_from, "family": opened.model.family, "init": _init(recipe)},
        "data_from": opened.data_from,
        "precision": "bfloat16" if opened.model.half else "float32",
        "trainable": recipe.trainable,
        "parameters": _parameters(opened.model),
        "device": None if sheet is None else {"name": device, "count": devices, "sheet": sheet.model_dump(mode="json")},
        "devices": devices,
        "memory": memory,
        "stages": stages,
        "total": _total(stages),
        "assumed": _assumed(plan),
        "not_counted": [*NOT_COUNTED, *_not_counted(recipe)],
    }
    if sheet is None:
        report["by_device"] = [_on_device(plan, resource.name) for resource in list_resources("device")]
    return report


def _init(recipe: Recipe) -> Any:
    return recipe.init if isinstance(recipe.init, str) else recipe.init.model_dump(mode="json")


def _parameters(model: PlannedModel) -> Report:
    return {
        "total": sum(model.weights.values()),
        "trained": sum(model.trained.values()),
        "by_group": model.weights,
        "trained_by_group": model.trained,
    }


def _assumed(plan: _Plan) -> Report:
    values = plan.assumed.model_dump(mode="json")
    values["data"] = None if plan.opened.expected is None else plan.opened.expected.model_dump(mode="json")
    return values


def _not_counted(recipe: Recipe) -> list[str]:
    found = ["the teacher of the pointing loss, its weights and its work"] if recipe.teacher is not None else []
    if any(stage.until is not None for stage in recipe.stages):
        found.append("that a stage may end before its budget (until)")
    if recipe.gradient_checkpointing:
        found.append("time and operations of running layers once more (gradient_checkpointing), about a third on top")
    return found


def _stage(plan: _Plan, stage: StageSizes) -> Report:
    """One stage: batches, tokens, operations, and seconds where a datasheet says how fast a device is."""
    recipe, batches = plan.recipe, stage.batches
    per_update = batches[0].samples * recipe.accumulate
    updates = num_updates(stage.stage, stage.samples, per_update)
    work = plan.work(stage)
    tokens = _tokens(plan.model, batches)
    found: Report = {
        "name": stage.stage.name,
        "updates": updates,
        "training_samples": stage.samples,
        "batch_size": batches[0].samples,
        "samples_per_update": per_update,
        "tokens_per_sample": tokens,
        "tokens_per_update": sum(tokens.values()) * per_update,
        "longest_prompt": widest(batches).prompt,
        "flops_per_update": work.flops * plan.devices,
        "flops_by_phase": {name: one.flops * plan.devices for name, one in work.phases.items()},
        "flops": work.flops * plan.devices * updates,
    }
    return found | _seconds(plan, work, updates)


def _seconds(plan: _Plan, work: UpdateWork, updates: int) -> Report:
    """Ranges: [least, most] seconds."""
    if plan.sheet is None:
        return {"update_sec": None, "sec": None, "communication_sec": None}
    rates = rates_of(plan.sheet, plan.model)
    if rates.flops_per_sec is None:
        return {"update_sec": None, "sec": None, "communication_sec": None}
    compute = seconds_of(work, rates, plan.assumed, plan.sheet.kind != "cpu")
    sent = communication_seconds(plan.model, plan.devices, plan.assumed)
    update = [compute[0] + sent[0], compute[1] + sent[1]]
    return {"update_sec": update, "communication_sec": list(sent), "sec": [one * updates for one in update]}


def _tokens(model: PlannedModel, batches: Sequence[BatchSizes]) -> dict[str, float]:
    """Of one sample, on average: text of the prompt, visual tokens, latent steps with what they replay, speech."""
    count = len(batches)
    latent = 0.0
    for batch in batches:
        steps = sum(chunk.tokens for chunk in chunks_of(model, batch) if chunk.name == "latents")
        latent += steps * (batch.latents_mean / batch.latents if batch.latents else 0.0)
    return {
        "text": sum(batch.text for batch in batches) / count,
        "pictures": sum(batch.visual for batch in batches) / count,
        "latents": latent / count,
        "speech": sum(batch.spoken for batch in batches) / count,
    }


def _memory(plan: _Plan) -> Report:
    """Of the stage that needs most."""
    model = plan.model
    found = [(plan.part(widest(stage.batches)), stage.stage.name) for stage in plan.opened.stages]
    batch, name = max(found, key=lambda one: plan.peak(one[0]))
    memory = plan.memory(batch)
    largest = max(model.counts.weights["layers"] / model.num_layers, model.weights.get("embedding", 0))
    runtime = plan.assumed.runtime_gb * 1e9 if plan.kernels is GPU else 0.0
    report: Report = memory.to_dict() | {
        "stage": name,
        "runtime": runtime,
        "total": plan.peak(batch) + runtime,
        "with_gradient_checkpointing": checkpointed(model, batch, memory, plan.kernels) + runtime,
        "with_sharding": sharded(memory, plan.devices, largest * model.stream_bytes) + runtime,
    }
    return report | _fit(plan, report, batch)


def _fit(plan: _Plan, report: Report, batch: BatchSizes) -> Report:
    """Whether it fits, what is left, and the largest batch that would fit."""
    held = None if plan.sheet is None or plan.sheet.memory_gb is None else plan.sheet.memory_gb * 1e9
    if held is None:
        return {"device_bytes": None, "headroom": None, "fits": None, "largest_batch": None}
    left = held - report["total"]
    fitting = (
        size * plan.share.parts
        for size in range(batch.samples, 0, -1)
        if plan.peak(batch.of(size)) + report["runtime"] <= held
    )
    return {"device_bytes": held, "headroom": left, "fits": left >= 0, "largest_batch": next(fitting, 0)}


def _total(stages: Sequence[Report]) -> Report:
    timed = [stage["sec"] for stage in stages if stage["sec"] is not None]
    return {
        "updates": sum(stage["updates"] for stage in stages),
        "flops": sum(stage["flops"] for stage in stages),
        "sec": [sum(one[i] for one in timed) for i in (0, 1)] if timed and len(timed) == len(stages) else None,
    }


def _on_device(plan: _Plan, name: str) -> Report:
    """One line for a datasheet: whether the run fits there, and how long it takes."""
    sheet = load_sheet(name)
    here = replace(plan, device=name, sheet=sheet)
    memory = _memory(here)
    total = _total([_stage(here, stage) for stage in plan.opened.stages])
    return {"name": name, "kind": sheet.kind, "memory_gb": sheet.memory_gb, "fits": memory["fits"], "sec": total["sec"]}


def refuse_unfit(report: Mapping[str, Any]) -> None:
    """Raises `UserError` where the run does not fit on the device that was named; the sentence says what to change."""
    memory = report["memory"]
    if memory["fits"] is not False:
        return
    device, total = report["device"]["name"], memory["total"] / 1e9
    batch = next(stage["batch_size"] for stage in report["stages"] if stage["name"] == memory["stage"])
    changes: list[str] = []
    if memory["largest_batch"]:
        changes.append(f"set batch_size={memory['largest_batch']} instead of {batch} and raise accumulate to match")
    if memory["total"] > memory["with_gradient_checkpointing"]:
        changes.append("set gradient_checkpointing=true")
    if report["trainable"] == "full":
        changes.append("set trainable: lora")
    changes += ["lower max_pixels or model.replay.num_tokens", "take a device with more memory (lrkit ls device)"]
    raise UserError(
        f"the run needs about {total:.1f} GB in stage {memory['stage']}, and {device} has "
        f"{memory['device_bytes'] / 1e9:.0f} GB, so it would not fit; {', or '.join(changes)}"
    )
