"""Numbers of a program that its work can be counted from: widths, heads, weights of the vision tower.

Place in the pipeline: bundle.py writes them into bundle.json; lrkit/profile/ceilings/roofline.py counts ceilings from
them.
"""

from typing import Any

from lrkit.contract.bundle.manifest import ProgramSizes
from lrkit.export.graph.chunks import Chunks


def program_sizes(chunks: Chunks) -> ProgramSizes:
    """Of the reasoner behind one program. Embeddings, norms and biases are no products and are left out."""
    dims, tower = chunks.dims, chunks.source.tower
    config: Any = tower.config
    vision = merger = 0
    for name, parameter in tower.named_parameters():
        if parameter.dim() > 1 and "merger" in name:
            merger += parameter.numel()
        elif parameter.dim() > 1:
            vision += parameter.numel()
    return ProgramSizes(
        width=dims.width, num_heads=dims.num_heads, num_key_heads=dims.num_key_heads, head_width=dims.head_width,
        inner=dims.inner, vocabulary=dims.vocabulary, cache_bytes=chunks.dialect.floats.itemsize,
        vision_width=int(getattr(config, "embed_dim", config.hidden_size)), vision_depth=int(config.depth),
        vision_weights=vision, merger_weights=merger,
    )  # fmt: skip
