"""Operations and bytes of one update on one device, by phase.

Place in the pipeline: PlannedModel + a batch -> `batch_work` -> timing.py. Operations are counted as
torch.utils.flop_counter counts them: two for a multiplication, attention over all keys, masked or not. Norms, softmax
and activations are left out. tests/parity/test_plan.py holds one against the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lrkit.profile.ceilings.roofline import Work, vision_work
from lrkit.train.plan.batches import BatchSizes
from lrkit.train.plan.kept import Chunk, Kernels, chunks_of, kept_bytes, replayed_tokens, tokens_of_layer
from lrkit.train.plan.model import PlannedModel

PHASES = ("tower", "prompt", "latents", "speech", "head", "optimizer")
NOTHING = Work(0.0, 0.0)
_FIRST = ("q_proj", "k_proj", "v_proj")
"""Matrices that read a layer's input."""


@dataclass(frozen=True)
class UpdateWork:
    """By `PHASES`."""

    phases: dict[str, Work]
    passes: dict[str, float]
    """Through a layer of the language model, by phase: however little is computed, its kernels are launched."""

    @property
    def flops(self) -> float:
        return sum(work.flops for work in self.phases.values())

    def times(self, count: float) -> "UpdateWork":
        """That many batches, and one optimizer step."""
        phases = {n: w if n == "optimizer" else Work(w.bytes * count, w.flops * count) for n, w in self.phases.items()}
        return UpdateWork(phases, {name: number * count for name, number in self.passes.items()})


def mean_work(found: Sequence[UpdateWork]) -> UpdateWork:
    """Of several batches."""
    share, phases, passes = 1 / len(found), dict[str, Work](), dict[str, float]()
    for name in PHASES:
        works = [one.phases[name] for one in found]
        phases[name] = Work(sum(w.bytes for w in works) * share, sum(w.flops for w in works) * share)
        passes[name] = sum(one.passes[name] for one in found) * share
    return UpdateWork(phases, passes)


def batch_work(model: PlannedModel, batch: BatchSizes, kernels: Kernels, parts: int = 1) -> UpdateWork:
    """Forward and backward of one batch, and the optimizer's step on one of `parts` of what trains."""
    phases: dict[str, Work] = dict.fromkeys(PHASES, NOTHING)
    passes: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    phases["tower"] = _tower(model, batch)
    kept = kept_bytes(model, batch, kernels)
    routed_before = dict.fromkeys(range(model.num_layers), 0)
    for chunk in chunks_of(model, batch):
        phases[chunk.name] = phases[chunk.name] + _chunk(model, batch, chunk, routed_before)
        passes[chunk.name] += _passes(model, chunk)
    for name, amount in kept.items():
        phases[name] = phases[name] + Work(2 * amount, 0.0)  # written once, read once
    phases["head"] = _head(model, batch)
    phases["optimizer"] = _optimizer(model, parts)
    return UpdateWork(phases, passes)


def _passes(model: PlannedModel, chunk: Chunk) -> float:
    """How often a chunk goes through a layer."""
    routing = model.settings.routing
    routed = len(routing.chosen_layers(model.num_layers)) * routing.depth if routing.depth else 0
    passes = model.num_layers + chunk.routed_parts * routed
    return passes * (3 + _again(model)) / 3  # forward and backward count as one


def _backward(model: PlannedModel) -> float:
    """What backward takes of the backbone's matrices, in forward passes: the gradient of inputs, and that of weights
    where they train."""
    return 2.0 if model.full else 1.0


def _again(model: PlannedModel) -> int:
    """Passes forward that the way back takes once more."""
    return int(model.recipe.gradient_checkpointing)


def _chunk(model: PlannedModel, batch: BatchSizes, chunk: Chunk, routed_before: dict[int, int]) -> Work:
    layers, routing = model.num_layers, model.settings.routing
    chosen = set(routing.chosen_layers(layers)) if routing.depth else set[int]()
    work = NOTHING
    for layer in range(layers):
        tokens = tokens_of_layer(model, batch, layer, chunk.tokens) if chunk.name == "prompt" else chunk.tokens
        work = work + _rows(model, chunk.samples, tokens, chunk.keys - chunk.tokens + tokens)
        if layer == 0 and not model.full and chunk.name != "latents":  # frozen embeddings take no gradient
            entry = sum(a * b for name, (a, b) in model.modules.items() if name.endswith(_FIRST))
            work = work + Work(0.0, -2.0 * chunk.samples * tokens * entry)
        if layer not in chosen:
            continue
        for _ in range(chunk.routed_parts):
            count = min(routing.alpha_of(layer, layers), tokens)
            routed_before[layer] += count
            for _ in range(routing.depth):
                work = work + _rows(model, chunk.samples, count, routed_before[layer])
    return work


def _rows(model: PlannedModel, samples: int, tokens: int, keys: int) -> Work:
    """One layer over a chunk, forward and backward."""
    weights = model.counts.weights["layers"] / model.num_layers
    again = _again(model)
    passes = 1 + again + _backward(model)
    flops = 2 * samples * tokens * (weights * passes + (3 + again) * model.lora_products / model.num_layers)
    flops += (3 + again) * 4 * samples * tokens * keys * model.query_width
    return Work(passes * weights * model.stream_bytes, flops)


def _head(model: PlannedModel, batch: BatchSizes) -> Work:
    targets = 0 if batch.vision_only else batch.samples * (batch.speech + batch.latents)
    if not targets:
        return NOTHING
    weights = model.counts.weights["head"]
    passes = 1 + _backward(model)
    # Logits are written and read about four times in float32 on the way to a loss and back.
    return Work(passes * weights * model.stream_bytes + 32 * targets * model.vocabulary, 2 * targets * weights * passes)


def _tower(model: PlannedModel, batch: BatchSizes) -> Work:
    """Pictures, the teacher's windows of each latent step, and windows of a fine replay."""
    once = vision_work(model.counts, batch.patches, batch.pictures)
    passes = 3.0 if model.tower_trains else 1.0
    unasked = 2 * model.tower.entry * batch.patches if model.tower_trains else 0.0
    work = Work(once.bytes * passes, once.flops * passes - unasked)
    # Once all visual tokens were replayed, there is no window to look at.
    looking = sum(replayed_tokens(model, batch, step) > 0 for step in range(batch.latents))
    settings, latents = model.settings, min(batch.latents_mean, looking)
    if settings.distill.weight and not batch.vision_only and batch.pictures:
        shown = min(batch.pictures, batch.samples)  # one window a sample, encoded at its picture's size
        part = shown / batch.pictures
        work = work + Work(once.bytes * latents, once.flops * latents * part)
    if settings.replay.source == "fine" and batch.visual:
        windows = min(settings.replay.num_tokens, batch.visual) * batch.samples * latents
        patches = windows * settings.replay.fine_zoom**2 * model.counts.merge_area
        own = vision_work(model.counts, patches, windows)
        work = work + Work(once.bytes * latents * passes, own.flops * passes)
    return work


def _optimizer(model: PlannedModel, parts: int) -> Work:
    """Weights, gradients and two means are read, and all but the gradients are written."""
    trained = sum(model.trained.values()) / parts
    return Work(7 * 4.0 * trained, 12.0 * trained)
