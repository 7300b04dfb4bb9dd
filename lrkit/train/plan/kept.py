"""What one chunk of tokens keeps for the backward pass, counted as autograd and transformers' layers keep it.

Place in the pipeline: PlannedModel + a chunk's sizes -> bytes -> memory.py. tests/parity/test_plan.py holds it against
what torch really keeps.

Legend: D width, F width inside the feed-forward layer, B samples, S tokens of the chunk, N keys that they see.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lrkit.train.plan.batches import BatchSizes
from lrkit.train.plan.model import PlannedModel


@dataclass(frozen=True)
class Kernels:
    """In what a device's kernels differ."""

    dropout_mask: int
    """Bytes that dropout keeps of each value."""
    repeats_keys: bool
    """Under a mask, keys are copied for every query head."""


CPU, GPU = Kernels(4, False), Kernels(1, True)


@dataclass(frozen=True)
class Chunk:
    """Tokens that are read at once behind others."""

    name: str
    samples: int
    tokens: int
    """Of one sample, padded."""
    before: int
    """Keys of earlier chunks."""
    routed_parts: int
    """In how many parts routing chooses; 0: nobody is routed."""
    masked: bool

    @property
    def rows(self) -> int:
        return self.samples * self.tokens

    @property
    def keys(self) -> int:
        return self.before + self.tokens


def chunks_of(model: PlannedModel, batch: BatchSizes) -> Iterator[Chunk]:
    """Prompt, latent steps, speech, in their order; nothing where the language model does not run."""
    if batch.vision_only:
        return
    settings, samples = model.settings, batch.samples
    routed = int(settings.routing.depth > 0)
    yield Chunk("prompt", samples, batch.prompt, 0, (2 if batch.visual else 1) * routed, batch.padded)
    before = batch.prompt
    at_once = settings.think.latents == "parallel"
    for step in range(min(batch.latents, 1) if at_once else batch.latents):
        tokens = replayed_tokens(model, batch, step) + (batch.latents if at_once else 1)
        for _ in range(min(settings.think.passes, batch.latents)):
            yield Chunk("latents", samples, tokens, before, routed, True)
        before += tokens
    if batch.speech > 1:
        yield Chunk("speech", samples, batch.speech - 1, before, 0, True)


def replayed_tokens(model: PlannedModel, batch: BatchSizes, step: int) -> int:
    """Tokens that a latent step replays, counted from 0: nothing is replayed twice, so small pictures run out."""
    replay = model.settings.replay
    chosen = max(0, min(replay.num_tokens, round(batch.visual) - step * replay.num_tokens))
    if replay.formation == "soft_mix":
        return min(1, chosen)
    return chosen * replay.fine_zoom**2


def tokens_of_layer(model: PlannedModel, batch: BatchSizes, layer: int, tokens: int) -> int:
    """Tokens of the prompt that a layer reads: fewer behind pruning."""
    prune = model.settings.prune
    if not prune.active or prune.after_layer is None or layer <= prune.after_layer:
        return tokens
    return tokens - int(batch.visual * (1000 - prune.share) / 1000)


def row_bytes(model: PlannedModel, kernels: Kernels) -> float:
    """Of one token in one layer, but for the keys that it sees."""
    width, inner, compute = model.width, model.inner, model.compute_bytes
    # A norm squares in float32; where its weight trains, that is multiplied with what it made.
    number = 4 + (model.stream_bytes if model.full else 0)
    norms = 2 * number * width
    heads = number * (model.query_width + model.key_width) if model.head_norms else 0
    attention = 2 * model.query_width * compute + 4 * model.heads
    return norms + heads + attention + 3 * inner * compute + _inputs(model, kernels)


def _inputs(model: PlannedModel, kernels: Kernels) -> float:
    """What the matrices of a layer keep of their inputs."""
    width, inner = model.width, model.inner
    if model.full:
        # Under autocast each of q, k, v, gate and up casts its input for itself; o and down get what is kept anyway.
        casts = 5 if model.stream_bytes > model.compute_bytes else 2
        return model.compute_bytes * (casts * width + inner)
    if not model.adapted:
        return 0  # a frozen matrix needs none
    lora = model.settings.lora
    inputs = sum(size for size, _ in model.modules.values())
    low_rank = lora.rank * model.compute_bytes * len(model.modules)
    if model.half:
        return inputs * (2 + (kernels.dropout_mask if lora.dropout else 0)) + low_rank
    if lora.dropout:
        return inputs * (4 + kernels.dropout_mask) + 4 * inner + low_rank
    return 4 * (2 * width + inner) + low_rank


def key_bytes(model: PlannedModel, chunk: Chunk, kernels: Kernels) -> float:
    """Of one layer: the keys and values that a chunk sees, joined by each chunk to a new tensor, and its mask."""
    compute = model.compute_bytes
    width = model.query_width if chunk.masked and kernels.repeats_keys else model.key_width
    mask = chunk.samples * chunk.tokens * chunk.keys * compute if chunk.masked else 0
    return chunk.samples * chunk.keys * 2 * width * compute + mask


def kept_bytes(model: PlannedModel, batch: BatchSizes, kernels: Kernels) -> dict[str, float]:
    """By chunk (prompt, latents, speech): what all layers keep, refined passes of routed tokens with them."""
    found: dict[str, float] = dict.fromkeys(("prompt", "latents", "speech"), 0.0)
    routing, layers = model.settings.routing, model.num_layers
    each, routed_before = row_bytes(model, kernels), dict.fromkeys(range(layers), 0)
    chosen = set(routing.chosen_layers(layers)) if routing.depth else set[int]()
    for chunk in chunks_of(model, batch):
        total = 0.0
        for layer in range(layers):
            rows = chunk.samples * (
                tokens_of_layer(model, batch, layer, chunk.tokens) if chunk.name == "prompt" else chunk.tokens
            )
            total += rows * each + key_bytes(model, chunk, kernels)
            if layer in chosen and chunk.routed_parts:
                total += _routed(model, chunk, layer, routed_before, each, rows, kernels)
        found[chunk.name] += total + _ends(model, chunk)
    return found


def _routed(
    model: PlannedModel, chunk: Chunk, layer: int, before: dict[int, int], each: float, rows: int, kernels: Kernels
) -> float:  # fmt: skip
    """One layer: what routers read, and the refined passes."""
    routing, width, total = model.settings.routing, model.width, 0.0
    for _ in range(chunk.routed_parts):
        total += rows * width * (4 + (2 if model.stream_bytes == 2 else 0))
        count = min(routing.alpha_of(layer, model.num_layers), chunk.tokens)
        refined = Chunk("refined", chunk.samples, count, before[layer], 0, True)
        total += routing.depth * (refined.rows * (each + 8 * width) + key_bytes(model, refined, kernels))
        before[layer] += count
    return total


def _ends(model: PlannedModel, chunk: Chunk) -> float:
    """Before the first layer and behind the last."""
    width = model.width
    norm = width * (4 + (model.stream_bytes if model.full else 0))
    rows = model.stream_bytes * width if model.full else 0
    replayed = 4 * width * (chunk.tokens - 1) * chunk.samples if chunk.name == "latents" else 0
    return chunk.rows * (norm + rows) + replayed


def tower_kept(model: PlannedModel, batch: BatchSizes, patch_bytes: int) -> float:
    """What a tower that trains keeps: the patches, what its matrices read and give, and what norms and attention keep.
    `patch_bytes` is what a patch has in pixels."""
    if not model.tower_trains:
        return 0.0
    visual, tower = batch.visual * batch.samples, model.tower
    matrices = sum((a + b) * (batch.patches if part == "vision" else visual) for part, a, b in tower.linears)
    return model.compute_bytes * (matrices + batch.patches * (tower.besides + patch_bytes))
