"""Counts the weights behind the torch engine.

Place in the pipeline: `TorchEngine.counts` -> lrkit/profile/ceilings/roofline.py.
"""

from dataclasses import asdict

from torch import nn

from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.engines.common.model_counts import Attention, ModelCounts, Sums


def count_reasoner(reasoner: LatentReasoner) -> ModelCounts:
    """Every weight of the reasoner, by part; adapters are merged into the weights beside them."""
    backbone, parts, tables = reasoner.backbone, Sums(), _tables(reasoner.backbone.model)
    for name, parameter in backbone.model.named_parameters():
        if "lora_" in name:
            continue  # merged into the weights beside it
        part = backbone.part_of(name)
        parts.bytes["vision" if part == "merger" else part] += parameter.numel() * parameter.element_size()
        if parameter.dim() > 1 and (name not in tables or part not in ("vision", "merger")):
            parts.weights[part] += parameter.numel()
    widths = asdict(backbone.attention)
    if (products := widths.pop("vision_products")) is not None:
        parts.weights["vision"] = products
    if backbone.tied_embeddings:
        parts.bytes["head"], parts.weights["head"] = parts.bytes["embedding"], parts.weights["embedding"]
    for parameter in reasoner.routers.parameters():
        parts.bytes["routing"] += parameter.numel() * parameter.element_size()
    size = next(backbone.model.parameters()).element_size()
    attention = Attention(**widths, cache_bytes=size)
    area = backbone.patches_per_token
    return ModelCounts(parts.bytes, parts.weights, backbone.num_layers, area, reasoner.settings, attention)


def _tables(model: nn.Module) -> set[str]:
    """Names of the weights that are looked up and not multiplied, such as those of positions."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
