"""How Qwen2.5-VL's language model lies in its weights, for an export. Implements `WeightReader`."""

from typing import Any

from torch import nn

from lrkit.export.weights.decoder_weights import DecoderWeights
from lrkit.export.weights.layer_recipe import Dimensions
from lrkit.export.weights.mrope_dimensions import mrope_dimensions


class Qwen25VLWeights(DecoderWeights):
    """See export/weights/reader.py."""

    tower = "model.visual"

    def new_tower(self, config: Any) -> nn.Module:
        """transformers' own."""
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

        return Qwen2_5_VisionTransformerPretrainedModel._from_config(config.vision_config)  # pyright: ignore

    def dimensions(self, config: Any) -> Dimensions:
        """From a Qwen2_5_VLConfig. Raises `ExportError` as the protocol says."""
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

        return mrope_dimensions(config.text_config, Qwen2_5_VLRotaryEmbedding(config.text_config))


PART = Qwen25VLWeights()
