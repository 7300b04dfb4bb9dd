"""Ceilings: what each phase must read and compute at least, and how near to what the device can do it came.

Place in the pipeline: counts from the model + counters of a run + rates.py -> `ceilings` -> profile/report.py.

Counted: every weight of a pass read once, two operations per weight and token, attention's products, the key-value
cache. Left out: activations, norms, softmax. A routed pass reads its layer again. So the ceiling is a lower bound of
the time, for weights that stay where they are (the rates are measured on a working set of the weights' size).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lrkit.contract.settings import ReasonerSettings
from lrkit.profile.measure.cases import settings_of
from lrkit.runtime.engines.common.protocol import Engine

_PARTS = ("vision", "embedding", "layers", "head", "routing")
_BYTES = {"fp32": 4.0, "fp16": 2.0, "float": 4.0, "int8": 1.0}
MOSTLY_OVERHEAD = 0.1
"""Below this share of its ceiling a phase is bound by neither memory nor arithmetic but by what runs around them."""


@dataclass(frozen=True)
class Attention:
    """Widths that attention's products need; the vision tower's for one picture of all patches."""

    query_width: int
    key_width: int
    """Of all key heads together."""
    cache_bytes: float
    """Per cached value."""
    vision_width: int
    vision_depth: int


@dataclass(frozen=True)
class ModelCounts:
    """Sizes of a model, counted or, for a bundle, from its bytes by part."""

    weight_bytes: dict[str, float]
    """vision (with merger), embedding, layers, head, routing."""
    weights: dict[str, float]
    """Weights in matrices: vision, merger, layers, head."""
    num_layers: int
    merge_area: int
    """Patches per visual token."""
    settings: ReasonerSettings
    attention: Attention | None = None
    """None where the widths are not known (bundles of an earlier lrkit): attention is then not counted."""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        return {**values, "settings": self.settings.model_dump(mode="json"), "notes": list(self.notes)}


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


@dataclass
class _Parts:
    """Sums by part while counting."""

    bytes: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PARTS, 0.0))
    weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("merger", *_PARTS), 0.0))


def count_model(engine: Engine) -> ModelCounts:
    """Counts of the weights behind an engine."""
    return _count_torch(engine) if engine.name == "torch" else _count_bundle(engine)


def phase_work(counts: ModelCounts, means: Mapping[str, float | None]) -> dict[str, Work]:
    """Work of each phase of an answer whose counters (statistics.COUNTERS) have these means."""
    prompt, latents = means.get("prefilled_tokens") or 0.0, means.get("latent_steps") or 0.0
    spoken = max(0.0, (means.get("ar_steps") or 0.0) - latents)
    chunk = 1 + (means.get("replayed_tokens") or 0.0) / latents if latents else 0.0
    thought = prompt + latents * chunk
    work = {
        "vision": _vision(counts, means.get("patches") or 0.0),
        "prefill": _pass(counts, prompt, prompt / 2, cached=0.0) + _routed(counts, prompt),
        "speak": _times(_pass(counts, 1.0, thought + spoken / 2, cached=thought + spoken / 2), spoken),
    }
    if latents:
        middle = (prompt + thought) / 2
        work["think"] = _times(_pass(counts, chunk, middle, cached=middle) + _routed(counts, chunk), latents)
    return work


def ceilings(
    work: Mapping[str, Work],
    phases_sec: Mapping[str, Mapping[str, Any]],
    rates: Rates,
    together: bool,
    vision_rates: Rates | None = None,
) -> dict[str, dict[str, Any]]:
    """Per phase: work, least time, measured median, achieved rates, the ratio of the times, and what binds.
    `together`: the measured prefill holds the vision tower. `vision_rates`: where the tower's are others."""
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
        }
    return found


def _pass(counts: ModelCounts, tokens: float, seen: float, cached: float) -> Work:
    """One pass of `tokens` through the language model, each seeing `seen` keys, `cached` of them read; one head row."""
    size, weights = counts.weight_bytes, counts.weights
    work = Work(size["layers"] + size["head"], 2 * weights["layers"] * tokens + 2 * weights["head"])
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


def _vision(counts: ModelCounts, patches: float) -> Work:
    if not patches:
        return Work(0.0, 0.0)
    flops = 2 * (counts.weights["vision"] * patches + counts.weights["merger"] * patches / counts.merge_area)
    if counts.attention is not None:
        flops += 4 * patches**2 * counts.attention.vision_width * counts.attention.vision_depth
    return Work(counts.weight_bytes["vision"], flops)


def _times(work: Work, count: float) -> Work:
    return Work(work.bytes * count, work.flops * count)


def _count_torch(engine: Any) -> ModelCounts:
    backbone, parts = engine.reasoner.backbone, _Parts()
    for name, parameter in backbone.model.named_parameters():
        if "lora_" in name:
            continue  # merged into the weights beside it
        part = _part_of(name)
        parts.bytes["vision" if part == "merger" else part] += parameter.numel() * parameter.element_size()
        if parameter.dim() > 1:
            parts.weights[part] += parameter.numel()
    if backbone.tied_embeddings:
        parts.bytes["head"], parts.weights["head"] = parts.bytes["embedding"], parts.weights["embedding"]
    for parameter in engine.reasoner.routers.parameters():
        parts.bytes["routing"] += parameter.numel() * parameter.element_size()
    text, vision = backbone.model.config.text_config, backbone.model.config.vision_config
    head_width = text.hidden_size // text.num_attention_heads
    size = next(backbone.model.parameters()).element_size()
    attention = Attention(
        query_width=text.hidden_size,
        key_width=text.num_key_value_heads * head_width,
        cache_bytes=size,
        vision_width=vision.embed_dim,
        vision_depth=vision.depth,
    )
    return ModelCounts(
        parts.bytes, parts.weights, engine.num_layers, backbone.merge_size**2, engine.reasoner.settings, attention
    )


def _part_of(name: str) -> str:
    if "visual.merger" in name:
        return "merger"
    table = {"visual": "vision", "embed_tokens": "embedding", "lm_head": "head"}
    return next((part for piece, part in table.items() if piece in name), "layers")


def _count_bundle(engine: Any) -> ModelCounts:
    """Bytes as stored (int4 as int4), weights and widths from the sizes that the bundle records."""
    entry, manifest = engine.entry, engine.bundle.manifest
    size = {part: float(entry.bytes_by_part.get(part, 0)) for part in _PARTS}
    # A tied head is stored once, as the embedding, and read whole for every token.
    size["head"] = size["head"] or size["embedding"]
    if entry.sizes is None:
        return _count_by_bytes(engine, size)
    s, layers = entry.sizes, engine.num_layers
    attention = (s.num_heads + 2 * s.num_key_heads) * s.head_width * s.width + s.num_heads * s.head_width * s.width
    weights = {
        "vision": float(s.vision_weights), "merger": float(s.merger_weights), "head": float(s.width * s.vocabulary),
        "layers": float(layers * (attention + 3 * s.width * s.inner)),
    }  # fmt: skip
    widths = Attention(
        query_width=s.num_heads * s.head_width, key_width=s.num_key_heads * s.head_width, cache_bytes=s.cache_bytes,
        vision_width=s.vision_width, vision_depth=s.vision_depth,
    )  # fmt: skip
    return ModelCounts(size, weights, layers, manifest.merge_size**2, settings_of(engine), widths)


def _count_by_bytes(engine: Any, size: Mapping[str, float]) -> ModelCounts:
    """For bundles that do not record their sizes: weights from their bytes, and no attention."""
    entry, manifest = engine.entry, engine.bundle.manifest
    per_weight = dict.fromkeys(_PARTS, _BYTES.get(entry.precision, 4.0))
    if entry.precision == "int4":
        asked: Mapping[str, Any] = manifest.target.get("int4") or {}
        four_bits = 0.5 + 4 / int(asked.get("block", 128))  # a float32 scale for each block
        per_weight = dict.fromkeys(_PARTS, four_bits)
        per_weight["head"] = _BYTES.get(str(asked.get("head")), four_bits)
        per_weight["vision"] = _BYTES.get(str(asked.get("vision")), four_bits)
    weights = {part: size[part] / per_weight[part] for part in ("vision", "layers", "head")}
    notes = ("the bundle records no sizes (export it again): weights counted from bytes, attention not at all",)
    return ModelCounts(
        dict(size),
        {**weights, "merger": 0.0},
        engine.num_layers,
        manifest.merge_size**2,
        settings_of(engine),
        None,
        notes,
    )
