"""`lrkit train --plan`: what a run would need and how long it would take, without a weight and without having run.

    recipe -> opened.py -> PlannedRun: memory.py, work.py, spread.py, timing.py -> the report that the verb prints

Every figure is an estimate: `measured` is false, and `assumed` and `not_counted` say what it rests on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lrkit.errors import UserError
from lrkit.profile.ceilings.devices import load_sheet
from lrkit.resources import list_resources
from lrkit.train.curriculum import num_updates
from lrkit.train.plan.batches import BatchSizes, StageSizes, widest
from lrkit.train.plan.kept import chunks_of
from lrkit.train.plan.memory import checkpointed
from lrkit.train.plan.model import PlannedModel
from lrkit.train.plan.opened import open_plan
from lrkit.train.plan.planned_run import PlannedRun
from lrkit.train.plan.spread import sent_by, sharded_sent, spread_of
from lrkit.train.plan.timing import Assumptions, link_of
from lrkit.train.recipe import Recipe
from lrkit.train.share import refuse_share

Report = dict[str, Any]
SCHEMA_VERSION = 1
WAYS = {"whole": False, "parts": True}
"""How what trains lies on several devices -> the recipe's `shard`."""
NOT_COUNTED = (
    "validation, checkpoints and reading data",
    "memory that torch's allocator holds in pieces too small to use",
    "norms, softmax and activation functions among the operations",
)


def plan_training(
    recipe: Recipe, device: str | None = None, devices: int = 1, assumed: Assumptions | None = None, machines: int = 1
) -> Report:
    """The plan of a run on `machines` machines of `devices` devices of one kind. `device` is a datasheet's name or
    file; None: some GPU, and all datasheets beside it.

    Raises:
        UserError: a number of devices or machines that no run has; no such datasheet.
        CheckpointError: `init` is not there, or a model of the hub that cannot be reached and has no shape.
        ConfigError: the settings do not fit the model.
        DataError: data that are there cannot be read.
    """
    spread = spread_of(devices, machines)
    refuse_share(recipe, spread.total)
    assumed = assumed or Assumptions()
    sheet = None if device is None else load_sheet(device)
    opened = open_plan(recipe, assumed.data, sheet is None or sheet.kind != "cpu")
    return plan_report(PlannedRun(recipe, opened, device, sheet, spread, assumed))


def plan_report(plan: PlannedRun) -> Report:
    """All that is known of a run whose model and batches are opened."""
    opened, sheet, total = plan.opened, plan.sheet, plan.spread.total
    stages = [_stage(plan, stage) for stage in opened.stages]
    named = None if sheet is None else {"name": plan.device, "count": total, "sheet": sheet.model_dump(mode="json")}
    report: Report = {
        "schema_version": SCHEMA_VERSION,
        "measured": False,
        "recipe": plan.recipe.name,
        "model": {"from": opened.model_from, "family": opened.model.family, "init": _init(plan.recipe)},
        "data_from": opened.data_from,
        "precision": "bfloat16" if opened.model.half else "float32",
        "trainable": plan.recipe.trainable,
        "shard": plan.recipe.shard,
        "parameters": _parameters(opened.model),
        "device": named,
        "devices": total,
        "machines": plan.spread.machines,
        "memory": _memory(plan),
        "communication": _communication(plan),
        "stages": stages,
        "total": _total(stages),
        "assumed": _assumed(plan),
        "not_counted": [*NOT_COUNTED, *_not_counted(plan.recipe)],
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


def _assumed(plan: PlannedRun) -> Report:
    values = plan.assumed.model_dump(mode="json")
    if plan.sheet is not None:
        values["link_gb_per_sec"] = link_of(plan.sheet, plan.assumed)
    values["data"] = None if plan.opened.expected is None else plan.opened.expected.model_dump(mode="json")
    return values


def _not_counted(recipe: Recipe) -> list[str]:
    found = ["the teacher of the pointing loss, its weights and its work"] if recipe.teacher is not None else []
    if any(stage.until is not None for stage in recipe.stages):
        found.append("that a stage may end before its budget (until)")
    return found


def _stage(plan: PlannedRun, stage: StageSizes) -> Report:
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
        "flops_per_update": work.flops * plan.spread.total,
        "flops_by_phase": {name: one.flops * plan.spread.total for name, one in work.phases.items()},
        "flops": work.flops * plan.spread.total * updates,
    }
    return found | _seconds(plan, stage, updates)


def _seconds(plan: PlannedRun, stage: StageSizes, updates: int) -> Report:
    """Ranges: [least, most] seconds, and what of an update is waiting for what is sent between devices."""
    time = plan.time(plan.work(stage))
    if time is None:
        return {"update_sec": None, "sec": None, "communication_sec": None, "communication_share": None}
    found: Report = {
        "update_sec": time.update,
        "communication_sec": time.sent,
        "communication_share": time.share,
        "sec": [one * updates for one in time.update],
    }
    if plan.spread.total == 1:
        return found
    held = {name: plan.held(in_parts) for name, in_parts in WAYS.items()}
    others = {name: one.time(one.work(stage)) for name, one in held.items()}
    others["sharded"] = held["whole"].time(held["whole"].work(stage), is_sharded=True)
    return found | {
        name: {"update_sec": one.update, "communication_share": one.share}
        for name, one in others.items()
        if one is not None
    }


def _communication(plan: PlannedRun) -> Report:
    """Bytes that a device sends in its machine, and a machine to the others, for one update; sharded: not offered."""
    rounds = plan.share.rounds
    sent = {name: sent_by(plan.held(in_parts).model, plan.spread, rounds) for name, in_parts in WAYS.items()}
    sent["sharded"] = sharded_sent(plan.model, plan.spread, rounds)
    return {name: asdict(one) for name, one in sent.items()}


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


def _memory(plan: PlannedRun) -> Report:
    """Of the stage that needs most."""
    batch, name = plan.widest()
    memory, runtime = plan.memory(batch), plan.runtime
    report: Report = memory.to_dict() | {
        "stage": name,
        "runtime": runtime,
        "total": plan.peak(batch) + runtime,
        "with_gradient_checkpointing": checkpointed(plan.model, batch, memory, plan.kernels) + runtime,
        "with_sharding": plan.sharded_peak(batch) + runtime,
        "without_shard": plan.held(in_parts=False).peak(batch) + runtime,
        "with_shard": None if plan.model.muon else plan.held(in_parts=True).peak(batch) + runtime,
    }
    return report | _fit(plan, report, batch)


def _fit(plan: PlannedRun, report: Report, batch: BatchSizes) -> Report:
    """Whether it fits, what is left, and the largest batch that would fit."""
    held = None if plan.sheet is None or plan.sheet.memory_gb is None else plan.sheet.memory_gb * 1e9
    if held is None:
        return dict.fromkeys(("device_bytes", "headroom", "fits", "largest_batch", "fits_sharded", "fits_in_parts"))
    left = held - report["total"]
    fitting = (
        size * plan.share.parts
        for size in range(batch.samples, 0, -1)
        if plan.peak(batch.of(size)) + report["runtime"] <= held
    )
    found: Report = {"device_bytes": held, "headroom": left, "fits": left >= 0, "largest_batch": next(fitting, 0)}
    parts = report["with_shard"]
    return found | {
        "fits_sharded": report["with_sharding"] <= held, "fits_in_parts": None if parts is None else parts <= held
    }  # fmt: skip


def _total(stages: Sequence[Report]) -> Report:
    timed = [stage["sec"] for stage in stages if stage["sec"] is not None]
    return {
        "updates": sum(stage["updates"] for stage in stages),
        "flops": sum(stage["flops"] for stage in stages),
        "sec": [sum(one[i] for one in timed) for i in (0, 1)] if timed and len(timed) == len(stages) else None,
    }


def _on_device(plan: PlannedRun, name: str) -> Report:
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
    if not report["shard"] and report["devices"] > 1 and (memory["with_shard"] or math.inf) < memory["total"]:
        changes.append("set shard=true")
    if memory["total"] > memory["with_gradient_checkpointing"]:
        changes.append("set gradient_checkpointing=true")
    if report["trainable"] == "full":
        changes.append("set trainable: lora")
    changes += ["lower max_pixels or model.replay.num_tokens", "take a device with more memory (lrkit ls device)"]
    why = "" if report["devices"] == 1 or report["shard"] else ", as every device holds all weights"
    raise UserError(
        f"the run needs about {total:.1f} GB in stage {memory['stage']}, and {device} has "
        f"{memory['device_bytes'] / 1e9:.0f} GB, so it would not fit{why}; "
        f"{', or '.join(changes)}"
    )
