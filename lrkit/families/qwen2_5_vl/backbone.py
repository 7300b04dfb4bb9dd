"""Qwen2.5-VL of any size, by transformers. Pictures are still, so their positions are not spread over time: the model
does that with the frames of videos only."""

from typing import Any, ClassVar

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from lrkit.families.qwen2_5_vl.windows import seen_in_layers
from lrkit.model.merged_patch_backbone import MergedPatchBackbone


class Qwen25VLBackbone(MergedPatchBackbone):
    """Implements `Backbone` (model/backbone.py) for Qwen2_5_VLForConditionalGeneration."""

    model_class: ClassVar[Any] = Qwen2_5_VLForConditionalGeneration
    config_class: ClassVar[Any] = Qwen2_5_VLConfig

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        vision: Any = model.config.vision_config
        self.attention = self.attention_sizes(vision.hidden_size, *seen_in_layers(vision))


PART = Qwen25VLBackbone
