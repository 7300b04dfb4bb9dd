"""SmolVLM2 of any size, by transformers."""

from typing import Any, ClassVar

from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from lrkit.families.idefics3.backbone import Idefics3Backbone


class SmolVLMBackbone(Idefics3Backbone):
    """Implements `Backbone` (model/backbone.py) for SmolVLMForConditionalGeneration."""

    model_class: ClassVar[Any] = SmolVLMForConditionalGeneration
    config_class: ClassVar[Any] = SmolVLMConfig


PART = SmolVLMBackbone
