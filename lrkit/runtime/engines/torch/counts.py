"""Counts the weights behind the torch engine.

Place in the pipeline: `TorchEngine.counts` -> lrkit/profile/ceilings/roofline.py.
"""

from dataclasses import asdict

from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.engines.common.model_counts import Attention, ModelCounts, Sums


def count_reasoner(reasoner: LatentReasoner) -> ModelCounts:
    """Every weight of the reasoner, by part; adapters are merged into the weights beside them."""
    backbone, parts = reasoner.backbone, Sums()
    for name, parameter in backbone.model.named_parameters():
        if "lora_" in name:
            continue  # merged into the weights beside it
        part = backbone.part_of(name)
        parts.bytes["vision" if part == "merger" else part] += parameter.numel() * parameter.element_size()
        if parameter.dim() > 1:
            parts.weights[part] += parameter.numel()
    if backbone.tied_embeddings:
        parts.bytes["head"], parts.weights["head"] = parts.bytes["embedding"], parts.weights["embedding"]
    for parameter in reasoner.routers.parameters():
        parts.bytes["routing"] += parameter.numel() * parameter.element_size()
    size = next(backbone.model.parameters()).element_size()
    attention = Attention(**asdict(backbone.attention), cache_bytes=size)
    area = backbone.patches_per_token
    return ModelCounts(parts.bytes, parts.weights, backbone.num_layers, area, reasoner.settings, attention)
