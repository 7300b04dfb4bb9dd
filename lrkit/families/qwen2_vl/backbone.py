"""Qwen2-VL of any size, by transformers."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lrkit.families.common.mrope import mrope_positions
from lrkit.families.protocols import Grid
from lrkit.model.backbone import WeightPart
from lrkit.model.decoder_backbone import DecoderBackbone
from lrkit.model.patch_order import PatchOrder


class Qwen2VLBackbone(DecoderBackbone):
    """Implements `Backbone` (model/backbone.py) for Qwen2VLForConditionalGeneration."""

    model_class: ClassVar[Any] = Qwen2VLForConditionalGeneration
    config_class: ClassVar[Any] = Qwen2VLConfig
    parts: ClassVar[Mapping[str, WeightPart]] = {
        "visual.merger": "merger", "visual": "vision", "embed_tokens": "embedding", "lm_head": "head"
    }  # fmt: skip
    axes = 3

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        super().__init__(model)
        # transformers declares its sub-configs as dict or None too; a model's own always are config objects.
        vision: Any = model.config.vision_config
        self._order = PatchOrder(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        self.patches_per_token = vision.spatial_merge_size**2
        self.attention = self.attention_sizes(vision.embed_dim, vision.depth)
        self.picture_sizes, self.token_raster = self._order.picture_sizes, self._order.token_raster
        self.unpatch, self.patch = self._order.unpatch, self._order.patch

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """See model/backbone.py."""
        tower = self.model.model.visual
        return tower(pixel_values.to(tower.dtype), grid_thw=grids).pooler_output

    def prompt_positions(self, ids: Sequence[int], grids: Sequence[Grid]) -> Tensor:
        """(3, P)."""
        return torch.from_numpy(mrope_positions(ids, self.image_token_id, grids, self._order.merge_size))


PART = Qwen2VLBackbone
