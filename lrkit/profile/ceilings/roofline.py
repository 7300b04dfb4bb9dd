"""Ceilings: what each phase must at least read and compute, and how near it came to what the device can do.

Place in the pipeline: `Engine.counts` + counters of a run + rates.py -> `ceilings` -> profile/report.py.

Counted: every weight of a pass read once, two operations per weight and token, attention's products, the key-value
cache. Left out: activations, norms, softmax. A routed pass reads its layer again. So the ceiling is a lower bound of
the time, for weights that stay where they are (the rates are measured on a working set of the weights' size).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lrkit.contract.schemes import MANY
from lrkit.profile.ceilings.number_types import TypeRate
from lrkit.runtime.engines.common.model_counts import ModelCounts

MOSTLY_OVERHEAD = 0.1
"""Below this share of its ceiling a phase is bound by neither memory nor arithmetic but by what runs around them."""


@dataclass(frozen=True)
class Work:
    """Bytes that must be read and operations that must be done."""

    bytes: float
    flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Rates:
    """What a device does at most."""

    bytes_per_sec: float
    flops_per_sec: float | None
    """None: unknown, then only memory bounds."""

    def seconds(self, work: Work) -> float:
        """The least time for `work`."""
        return max(self.memory_seconds(work), self.compute_seconds(work) or 0.0)

    def memory_seconds(self, work: Work) -> float:
        return work.bytes / self.bytes_per_sec

    def compute_seconds(self, work: Work) -> float | None:
        return None if self.flops_per_sec is None else work.flops / self.flops_per_sec


def phase_work(counts: ModelCounts, means: Mapping[str, float | None]) -> dict[str, Work]:
    """Work of each phase of an answer whose counters (statistics.COUNTERS, and pictures) have these means."""
    prompt, latents = means.get("prefilled_tokens") or 0.0, means.get("latent_steps") or 0.0
    spoken = max(0.0, (means.get("ar_steps") or 0.0) - latents)
    chunk = 1 + (means.get("replayed_tokens") or 0.0) / latents if latents else 0.0
    patches = means.get("patches") or 0.0

    def passes(work_of: Callable[[float], Work]) -> Work:
        """By the tokens of the prompt that a layer keeps: all, or those that pruning leaves."""
        return _by_layers(counts, prompt, patches / counts.merge_area, work_of)

    def speaking(kept: float) -> Work:
        cached = kept + latents * chunk + spoken / 2
        return _times(_pass(counts, 1.0, cached, cached=cached), spoken)

    def thinking(kept: float) -> Work:
        middle = kept + latents * chunk / 2
        return _times(_pass(counts, chunk, middle, cached=middle) + _routed(counts, chunk), latents)

    work = {
        "vision": vision_work(counts, patches, means.get("pictures") or 1.0),
        "prefill": passes(lambda kept: _pass(counts, kept, kept / 2, cached=0.0) + _routed(counts, kept)),
        "speak": passes(speaking),
    }
    if latents:
        work["think"] = passes(thinking) + _times(_closer_look(counts, chunk - 1), latents)
    return work


def _by_layers(counts: ModelCounts, prompt: float, visual: float, work_of: Callable[[float], Work]) -> Work:
    """Work of all layers, where `work_of` tells what it would be if each kept so many tokens of the prompt."""
    prune = counts.settings.prune
    if not prune.active or prune.after_layer is None:
        return work_of(prompt)
    share = (prune.after_layer + 1) / counts.num_layers
    left = prompt - visual + math.ceil(visual * prune.share / 1000)
    return _times(work_of(prompt), share) + _times(work_of(left), 1 - share)


def _closer_look(counts: ModelCounts, replayed: float) -> Work:
    """The tower's work on the windows of one latent step, where replay is fine; each is a picture of its own."""
    replay = counts.settings.replay
    tokens = replay.fine_zoom**2
    return vision_work(counts, replayed * counts.merge_area, replayed / tokens) if tokens > 1 else Work(0.0, 0.0)


def ceilings(
    work: Mapping[str, Work],
    phases_sec: Mapping[str, Mapping[str, Any]],
    rates: Rates,
    together: bool,
    vision_rates: Rates | None = None,
    machine: TypeRate | None = None,
) -> dict[str, dict[str, Any]]:
    """Per phase: work, least time, measured median, achieved rates, the ratio of the times, and what binds.
    `together`: the measured prefill holds the vision tower. `vision_rates`: where the tower's are others. `machine`:
    the fastest float type that the machine has, whose ceiling is told beside."""
    joined = dict(work)
    if together and "vision" in joined:
        joined["prefill"] = joined["prefill"] + joined.pop("vision")
    found: dict[str, dict[str, Any]] = {}
    for name, needed in joined.items():
        measured = phases_sec.get(name, {}).get("median")
        own = vision_rates if name == "vision" and vision_rates is not None else rates
        least = own.seconds(needed)
        share = least / measured if measured and measured > 0 else None
        memory, compute = own.memory_seconds(needed), own.compute_seconds(needed)
        binds = "memory" if compute is None or memory >= compute else "compute"
        found[name] = {
            "bytes": needed.bytes,
            "flops": needed.flops,
            "memory_sec": memory,
            "compute_sec": compute,
            "ceiling_sec": least,
            "measured_sec": measured,
            "achieved_bytes_per_sec": needed.bytes / measured if measured and measured > 0 else None,
            "achieved_flops_per_sec": needed.flops / measured if measured and measured > 0 else None,
            "share_of_ceiling": share,
            "binds": "overhead" if share is not None and share < MOSTLY_OVERHEAD else binds,
            "machine_type": None if machine is None else machine.name,
            "share_of_machine": _of_machine(needed, own, machine, measured),
        }
    return found


def _of_machine(needed: Work, own: Rates, machine: TypeRate | None, measured: float | None) -> float | None:
    """The least time in the machine's fastest float type over the measured one. Above 1 where integers are faster."""
    if machine is None or not measured or measured < 0:
        return None
    return Rates(own.bytes_per_sec, machine.flops_per_sec).seconds(needed) / measured


def _pass(counts: ModelCounts, tokens: float, seen: float, cached: float) -> Work:
    """One pass of `tokens` through the language model, each seeing `seen` keys, `cached` of them read; one head row."""
    size, weights = counts.weight_bytes, counts.weights
    own = tokens >= MANY and size.get("chunks")  # a second copy of the layers, where there is one
    work = Work((own or size["layers"]) + size["head"], 2 * weights["layers"] * tokens + 2 * weights["head"])
    if counts.attention is None:
        return work
    a, layers = counts.attention, counts.num_layers
    products = 4 * tokens * seen * a.query_width * layers
    return work + Work(2 * cached * a.key_width * a.cache_bytes * layers, products)


def _routed(counts: ModelCounts, tokens: float) -> Work:
    """The extra passes of the routed tokens of one chunk, all depths run."""
    routing, layers = counts.settings.routing, counts.num_layers
    chosen = routing.chosen_layers(layers)
    per_layer = counts.weight_bytes["layers"] / layers
    routed = sum(min(routing.alpha_of(layer, layers), tokens) for layer in chosen) * routing.depth
    flops = 2 * counts.weights["layers"] / layers * routed
    return Work(per_layer * len(chosen) * routing.depth + counts.weight_bytes["routing"], flops)


def vision_work(counts: ModelCounts, patches: float, pictures: float) -> Work:
    """The tower's work. A patch sees those of its own picture, or fewer; pictures count as of one size, which takes the
    least."""
    if not patches or not pictures:
        return Work(0.0, 0.0)
    flops = 2 * (counts.weights["vision"] * patches + counts.weights["merger"] * patches / counts.merge_area)
    if (a := counts.attention) is not None:
        whole = patches / pictures
        layers = [(a.vision_depth, whole), *((depth, min(seen, whole)) for depth, seen in a.vision_windows)]
        flops += sum(4 * patches * seen * a.vision_width * depth for depth, seen in layers)
    return Work(counts.weight_bytes["vision"], flops)


def _times(work: Work, count: float) -> Work:
    return Work(work.bytes * count, work.flops * count)
