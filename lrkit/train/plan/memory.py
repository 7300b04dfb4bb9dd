"""Memory of one device in training: weights, gradients, optimizer, what is kept for the backward pass, logits.

Place in the pipeline: PlannedModel + the largest batch -> `memory_of` -> plan.py. benchmarks/plan_memory.py holds it
against real runs.

Some moments need more than others: where the backward pass begins, with all that the forward pass kept and the logits;
where gradients of the embedding are added up; where the pass is back behind speech, with what the prompt and the latent
steps kept and a gradient of every weight, which waits there for those of the chunks before; where it ends, and devices
exchange their parts (`shard: true`). The plan counts the largest.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from lrkit.train.parts import MOST_AT_ONCE
from lrkit.train.plan.batches import BatchSizes
from lrkit.train.plan.kept import Kernels, chunks_of, kept_bytes, tower_kept
from lrkit.train.plan.model import PlannedModel

_LOGITS = 13
"""Bytes for each logit that is supervised: logits, the same with <|latent|> masked (or their gradient) and log
probabilities in float32, and the mask."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: float
    """That the model computes with."""
    gradients: float
    """Summed over the batches of an update, and in parts over all devices."""
    optimizer: float
    copies: float
    """Of weights in bfloat16, which autocast keeps through the forward pass."""
    prompt: float
    """Kept of the prompt."""
    latents: float
    """Kept of the latent steps, with the keys that each has joined."""
    speech: float
    """Kept of what is spoken."""
    tower: float
    """Kept of the tower where it trains; else what it works with for a moment."""
    logits: float
    pictures: float
    """Of batches that wait, where these are in the same memory."""
    communication: float
    """Where several devices train: buckets of gradients; in parts, what is packed to be exchanged, beyond the gradients
    that it takes the place of."""
    accumulates: bool
    """Whether gradients are there before the backward pass begins."""
    tables: float = 0.0
    """Gradients of the language head and the embedding where these train: each use of a matrix makes a whole one, and
    two of them are added to a third."""
    scratch: float = 0.0
    """Of kernels that lay out a matrix in their own way."""
    tower_kept: bool = False
    arriving: float = 0.0
    """Gradients of one batch, until they are added to `gradients`."""
    in_parts: bool = False
    """Whether gradients, the optimizer's means and the next are of this device's part alone."""
    masters: float = 0.0
    """Float32 numbers of weights that compute in bfloat16."""

    @property
    def held(self) -> float:
        """At any moment."""
        buckets = 0.0 if self.in_parts else self.communication
        return self.weights + self.masters + self.optimizer + self.pictures + buckets + self.scratch

    @property
    def before(self) -> float:
        """Gradients of earlier batches of the update, while one is computed."""
        return self.gradients if self.accumulates else 0.0

    @property
    def end(self) -> float:
        """Beside what is held, where the backward pass ends."""
        exchanged = self.communication if self.in_parts else 0.0
        return max(self.before + self.arriving, self.gradients) + exchanged

    @property
    def activations(self) -> float:
        """Kept for the backward pass."""
        tower = self.tower if self.tower_kept else 0.0
        return self.copies + self.prompt + self.latents + self.speech + tower

    @property
    def peak(self) -> float:
        """The most that is needed at once."""
        kept, before = self.activations, self.before
        # Before speech is read: the teacher's tower works. Behind it, on the way back: the tables' gradients, then all.
        teaching = 0.0 if self.tower_kept else self.tower
        within = kept - self.speech + before + max(teaching, self.tables, self.arriving)
        return self.held + max(kept + before + self.logits, within, self.end)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "activations": self.activations, "peak": self.peak}


def memory_of(
    model: PlannedModel, batch: BatchSizes, accumulate: int, devices: int, kernels: Kernels, patch_bytes: int,
    host: bool = False,
) -> Memory:  # fmt: skip
    """Bytes that one of `devices` needs for this batch. `patch_bytes` is what a patch has in pixels; `host`: it is the
    memory in which batches wait."""
    kept = kept_bytes(model, batch, kernels)
    targets = 0 if batch.vision_only else batch.samples * (batch.speech + batch.latents)
    tower = tower_kept(model, batch, patch_bytes)
    loader = model.recipe.loader
    waiting = accumulate + (max(loader.ahead, loader.num_workers) + 1 if host else 0)
    return Memory(
        **_of_weights(model, batch, devices, host),
        prompt=kept["prompt"],
        latents=kept["latents"],
        speech=kept["speech"],
        tower=tower or _tower_works(model, batch, patch_bytes),
        logits=_LOGITS * targets * model.vocabulary,
        pictures=4.0 * patch_bytes * batch.patches * waiting,
        accumulates=accumulate > 1,
        tables=_tables(model) if model.full and not batch.vision_only else 0.0,
        # oneDNN keeps the largest matrix that it has laid out for products in bfloat16.
        scratch=2.0 * model.vocabulary * model.width if host and model.half and not batch.vision_only else 0.0,
        tower_kept=bool(tower),
    )


def _of_weights(model: PlannedModel, batch: BatchSizes, devices: int, host: bool) -> dict[str, Any]:
    """What grows with the weights (the table of docs/decisions/sharding.md)."""
    trained, narrowed = sum(model.trained.values()), model.narrowed
    found: dict[str, Any] = {
        "weights": model.weight_bytes,
        "gradients": 4 * trained,
        "arriving": 0.0 if batch.vision_only else _arriving(model),
        "optimizer": 8 * trained - 4 * model.muon,
        "copies": 2 * model.cast,
        "communication": 4 * trained if devices > 1 else 0,
    }
    if not model.in_parts:
        return found
    arriving = 4 * trained - 2 * narrowed  # whole, where they are exchanged
    # Packed in float32 in the place of these, with the sum of the own part; gloo, on CPUs, sums in a copy.
    buffers = 1 + (1 / devices + host if devices > 1 else 0)
    packed = min(trained, max(model.largest, MOST_AT_ONCE))
    return found | {
        "in_parts": True,
        "arriving": arriving,
        "gradients": found["gradients"] / devices,
        "optimizer": found["optimizer"] / devices,
        "masters": 4 * narrowed / devices,
        "communication": packed * (4 * buffers - arriving / trained),
    }


def _arriving(model: PlannedModel) -> float:
    """Of the language model: each chunk adds to a gradient that waits for the chunks before, in the type of the
    product. The tower runs once, and hands over each gradient as it comes."""
    once = ("vision", "merger")
    numbers = sum(count for group, count in model.trained.items() if group not in once)
    in_half = sum(count for group, count in model.multiplied.items() if group not in once) if model.half else 0
    return 4 * numbers - 2 * in_half


def _tables(model: PlannedModel) -> float:
    """Three matrices in float32; the head's uses are added up in the type of its products, and then once cast. Of
    weights in bfloat16 all is in bfloat16."""
    one, tied = model.vocabulary * model.width, "head" not in model.weights
    if model.narrowed:
        return (3 if tied else 1 + 3) * 2 * one
    if tied:
        return (3 * 2 + 4) * one if model.half else 3 * 4 * one
    return (1 + 3) * 4 * one


def _tower_works(model: PlannedModel, batch: BatchSizes, patch_bytes: int) -> float:
    """What a frozen tower needs for a moment: one layer's inputs and outputs; of convolutions, a few maps in full."""
    widest = max((a + b for part, a, b in model.tower.linears if part == "vision"), default=0)
    pixels = patch_bytes / 3
    return model.compute_bytes * batch.patches * max(2 * widest, 4 * pixels * model.tower.full_channels)


def checkpointed(model: PlannedModel, batch: BatchSizes, memory: Memory, kernels: Kernels) -> float:
    """The peak if every layer of the language model kept its input alone and was run again in the backward pass. The
    keys of earlier chunks stay, because later chunks read them."""
    layers = model.num_layers
    inputs, keys = model.width * model.stream_bytes, 2 * model.key_width * model.compute_bytes
    of_chunk: dict[str, float] = dict.fromkeys(("prompt", "latents", "speech"), 0.0)
    for chunk in chunks_of(model, batch):
        of_chunk[chunk.name] += chunk.rows * (inputs + keys) * layers
    one = max(kept_bytes(model, batch, kernels).values()) / layers
    tower = memory.tower if memory.tower_kept else 0.0
    kept = memory.copies + tower + sum(of_chunk.values()) + one
    within = kept - of_chunk["speech"] + memory.arriving
    return memory.held + max(memory.before + max(kept + memory.logits, within), memory.end)


def sharded(memory: Memory, devices: int, largest_layer: float) -> Memory:
    """The same if weights, gradients and optimizer were spread over the devices (FSDP, ZeRO-3): two layers are whole at
    a time, in the type of the products, so autocast copies nothing."""
    return replace(
        memory,
        weights=memory.weights / devices,
        gradients=memory.gradients / devices,
        optimizer=memory.optimizer / devices,
        copies=0.0,
        communication=0.0,
        scratch=memory.scratch + 2 * largest_layer,
    )
