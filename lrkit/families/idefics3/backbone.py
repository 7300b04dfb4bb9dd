"""Idefics3 of any size, by transformers: its own decoder, tower and connector, wrapped and not copied."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from lrkit.families.idefics3.layout import TEXT
from lrkit.families.idefics3.views import Views
from lrkit.families.protocols import Grid
from lrkit.model.backbone import WeightPart
from lrkit.model.decoder_backbone import DecoderBackbone


class Idefics3Backbone(DecoderBackbone):
    """Implements `Backbone` (model/backbone.py) for Idefics3ForConditionalGeneration."""

    model_class: ClassVar[Any] = Idefics3ForConditionalGeneration
    config_class: ClassVar[Any] = Idefics3Config
    decoder_name: ClassVar[str] = TEXT
    parts: ClassVar[Mapping[str, WeightPart]] = {
        "connector": "merger", "vision_model": "vision", "embed_tokens": "embedding", "lm_head": "head"
    }  # fmt: skip
    lora_targets = r".*text_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        vision: Any = model.config.vision_config
        self._views = Views(vision.patch_size, model.config.scale_factor, vision.image_size)
        self.patches_per_token: int = model.config.scale_factor**2
        windows = ((vision.num_hidden_layers, self._views.side**2),)
        self.attention = self.attention_sizes(vision.hidden_size, 0, windows)
        self.picture_sizes, self.token_raster = self._views.picture_sizes, self._views.token_raster
        self.unpatch, self.patch = self._views.unpatch, self._views.patch

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """Every view by itself, as transformers has them."""
        model, side = self.model.model, self._views.side
        images = self._views.images(pixel_values.to(model.vision_model.dtype))
        mask = torch.ones(len(images), side, side, dtype=torch.bool, device=images.device)
        seen = model.vision_model(pixel_values=images, patch_attention_mask=mask).last_hidden_state
        return model.connector(seen).flatten(0, 1)

    def prompt_positions(self, ids: Sequence[int], grids: Sequence[Grid]) -> Tensor:
        """(1, P): every token counts."""
        return torch.arange(len(ids))[None]


PART = Idefics3Backbone
