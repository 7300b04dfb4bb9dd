"""Qwen3-VL of any size, by transformers.

Its tower gives features of several of its layers. Those of the last one become input embeddings; the language model
adds the others to the states of visual tokens after its own first layers, in order.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from lrkit.model.backbone import WeightPart
from lrkit.model.merged_patch_backbone import MergedPatchBackbone


class Qwen3VLBackbone(MergedPatchBackbone):
    """Implements `Backbone` (model/backbone.py) for Qwen3VLForConditionalGeneration."""

    model_class: ClassVar[Any] = Qwen3VLForConditionalGeneration
    config_class: ClassVar[Any] = Qwen3VLConfig
    parts: ClassVar[Mapping[str, WeightPart]] = {
        "visual.deepstack_merger_list": "merger", **MergedPatchBackbone.parts
    }  # fmt: skip

    def __init__(self, model: Qwen3VLForConditionalGeneration) -> None:
        super().__init__(model)
        vision: Any = model.config.vision_config
        self.deep_layers = tuple(range(len(vision.deepstack_visual_indexes)))

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """See model/backbone.py."""
        tower = self.model.model.visual
        seen = tower(pixel_values.to(tower.dtype), grid_thw=grids)
        return torch.cat((seen.pooler_output, *seen.deepstack_features), dim=-1)


PART = Qwen3VLBackbone
