"""Counts the weights behind the torch engine.

Place in the pipeline: `TorchEngine.counts` -> lrkit/profile/ceilings/roofline.py.
"""

from typing import Any

from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.engines.common.counts import Attention, ModelCounts, Sums


def count_reasoner(reasoner: LatentReasoner) -> ModelCounts:
    """Every weight of the reasoner, by part; adapters are merged into the weights beside them."""
    backbone, parts = reasoner.backbone, Sums()
    for name, parameter in backbone.model.named_parameters():
        if "lora_" in name:
            continue  # merged into the weights beside it
        part = _part_of(name)
        parts.bytes["vision" if part == "merger" else part] += parameter.numel() * parameter.element_size()
        if parameter.dim() > 1:
            parts.weights[part] += parameter.numel()
    if backbone.tied_embeddings:
        parts.bytes["head"], parts.weights["head"] = parts.bytes["embedding"], parts.weights["embedding"]
    for parameter in reasoner.routers.parameters():
        parts.bytes["routing"] += parameter.numel() * parameter.element_size()
    config: Any = backbone.model.config
    text, vision = config.text_config, config.vision_config
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
        parts.bytes, parts.weights, backbone.num_layers, backbone.merge_size**2, reasoner.settings, attention
    )


def _part_of(name: str) -> str:
    if "visual.merger" in name:
        return "merger"
    table = {"visual": "vision", "embed_tokens": "embedding", "lm_head": "head"}
    return next((part for piece, part in table.items() if piece in name), "layers")
