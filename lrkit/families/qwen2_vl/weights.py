"""How Qwen2-VL's language model lies in its weights, for an export. Implements `WeightReader`."""

from typing import Any

from torch import nn

from lrkit.export.weights.decoder_weights import DecoderWeights
from lrkit.export.weights.layer_recipe import Dimensions
from lrkit.export.weights.mrope_dimensions import mrope_dimensions


class Qwen2VLWeights(DecoderWeights):
    """See export/weights/reader.py."""

    tower = "model.visual"

    def new_tower(self, config: Any) -> nn.Module:
        """transformers' own."""
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

        return Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config)  # pyright: ignore

    def dimensions(self, config: Any) -> Dimensions:
        """From a Qwen2VLConfig. Raises `ExportError` as the protocol says."""
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

        return mrope_dimensions(config.text_config, Qwen2VLRotaryEmbedding(config.text_config))


PART = Qwen2VLWeights()
