"""Qwen2-VL of any size, by transformers."""

from typing import Any, ClassVar

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lrkit.model.merged_patch_backbone import MergedPatchBackbone


class Qwen2VLBackbone(MergedPatchBackbone):
    """Implements `Backbone` (model/backbone.py) for Qwen2VLForConditionalGeneration."""

    model_class: ClassVar[Any] = Qwen2VLForConditionalGeneration
    config_class: ClassVar[Any] = Qwen2VLConfig
    width_name: ClassVar[str] = "embed_dim"


PART = Qwen2VLBackbone
