"""Counts the weights behind a program, by what its bundle records. Torch-free.

Place in the pipeline: `ProgramEngine.counts` -> lrkit/profile/ceilings/roofline.py.
"""

from collections.abc import Mapping

from lrkit.contract.bundle.manifest import Manifest, ProgramEntry
from lrkit.contract.schemes import FLOAT, Scheme, chosen, scheme_named
from lrkit.runtime.engines.common.model_counts import PARTS, Attention, ModelCounts


def count_program(manifest: Manifest, entry: ProgramEntry) -> ModelCounts:
    """Bytes as stored (integers as integers), weights and widths from the sizes that the bundle records."""
    size = {part: float(entry.bytes_by_part.get(part, 0)) for part in PARTS}
    for part in ("layers", "chunks"):  # an adapter that is kept apart is read with either
        size[part] += float(entry.bytes_by_part.get("adapter", 0)) if size[part] else 0.0
    # A tied head is stored once, as the embedding, and read whole for every token.
    size["head"] = size["head"] or size["embedding"]
    if entry.sizes is None:
        return _count_by_bytes(manifest, entry, size)
    s, layers = entry.sizes, entry.num_layers
    attention = (s.num_heads + 2 * s.num_key_heads) * s.head_width * s.width + s.num_heads * s.head_width * s.width
    weights = {
        "vision": float(s.vision_weights), "merger": float(s.merger_weights), "head": float(s.width * s.vocabulary),
        "layers": float(layers * (attention + s.inner_matrices * s.width * s.inner)),
    }  # fmt: skip
    widths = Attention(
        query_width=s.num_heads * s.head_width, key_width=s.num_key_heads * s.head_width, cache_bytes=s.cache_bytes,
        vision_width=s.vision_width, vision_depth=s.vision_depth, vision_windows=s.vision_windows,
    )  # fmt: skip
    return ModelCounts(size, weights, layers, manifest.token_patches, entry.settings, widths)


def _count_by_bytes(manifest: Manifest, entry: ProgramEntry, size: Mapping[str, float]) -> ModelCounts:
    """For bundles that do not record their sizes: weights from their bytes, and no attention."""
    parts = ("vision", "layers", "head")
    weights = {part: size[part] / _bytes_per_weight(manifest, scheme_named(entry.precision), part) for part in parts}
    notes = ("the bundle records no sizes (export it again): weights counted from bytes, attention not at all",)
    return ModelCounts(
        dict(size),
        {**weights, "merger": 0.0},
        entry.num_layers,
        manifest.token_patches,
        entry.settings,
        None,
        notes,
    )


def _bytes_per_weight(manifest: Manifest, scheme: Scheme, part: str) -> float:
    if not scheme.integers:
        return scheme.bytes_per_weight()
    name = chosen(manifest.target, scheme, part)
    held = scheme_named("fp32" if name == FLOAT else name)
    return held.bytes_per_weight(chosen(manifest.target, scheme, "block"))
