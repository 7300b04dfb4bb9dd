"""Visual tokens that add features of their own behind deeper layers, for tests: a tiny Qwen2-VL that makes them of its
tokens by a fixed matrix per layer."""

import torch
from torch import Tensor

from lrkit.model.reasoner import LatentReasoner

DEEP = (0, 2)
"""Layers behind which they are added: neither all nor neighbours."""


def deepened(reasoner: LatentReasoner, layers: tuple[int, ...] = DEEP) -> dict[int, Tensor]:
    """Gives the backbone such features; returns the matrices (D, D) by layer."""
    backbone = reasoner.backbone
    width, random = backbone.hidden_size, torch.Generator().manual_seed(7)
    matrices = {layer: 0.3 * torch.randn(width, width, generator=random) for layer in layers}
    encode = backbone.encode_images

    def encode_images(pixel_values: Tensor, grids: Tensor) -> Tensor:
        tokens_VD = encode(pixel_values, grids)
        return torch.cat([tokens_VD, *(tokens_VD @ matrix for matrix in matrices.values())], dim=-1)

    backbone.deep_layers, backbone.encode_images = layers, encode_images
    return matrices
