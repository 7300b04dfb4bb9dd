"""How Idefics3's language model and tower lie in its weights, for an export. Implements `WeightReader`."""

from typing import Any, ClassVar

from torch import nn

from lrkit.export.weights.decoder_weights import DecoderWeights
from lrkit.export.weights.layer_recipe import Dimensions, LayerRecipe, Norm, known
from lrkit.families.idefics3.layout import TEXT


class Seeing(nn.Module):
    """The vision tower and the connector behind it, named as in the whole model."""

    def __init__(self, vision_model: Any, connector: Any, config: Any) -> None:
        super().__init__()
        self.vision_model, self.connector, self.config = vision_model, connector, config


class Idefics3Weights(DecoderWeights):
    """See export/weights/reader.py."""

    text: ClassVar[str] = TEXT
    tower = "model"

    def new_tower(self, config: Any) -> nn.Module:
        """transformers' own two."""
        tower, connector = self._classes()
        return Seeing(tower._from_config(config.vision_config), connector(config), config)

    def _classes(self) -> tuple[Any, Any]:
        from transformers.models.idefics3 import modeling_idefics3 as made

        return made.Idefics3VisionTransformer, made.Idefics3Connector

    def dimensions(self, config: Any) -> Dimensions:
        """From transformers' config. Raises `ExportError` as the protocol says."""
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        text = config.text_config
        known("language model", text.model_type, ["llama"])
        known("activation", text.hidden_act, ["silu"])
        rotary = LlamaRotaryEmbedding(text)
        kind = text.rope_parameters["rope_type"]
        known("rotary type", kind if rotary.attention_scaling == 1.0 else f"{kind}, scaled", ["default"])
        return Dimensions(
            width=text.hidden_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_key_heads=text.num_key_value_heads,
            head_width=text.head_dim,
            inner=text.intermediate_size,
            vocabulary=text.vocab_size,
            inverse_frequencies=tuple(float(f) for f in rotary.inv_freq),
            rotary_axes=(0,) * len(rotary.inv_freq),
            recipe=LayerRecipe(norm=Norm("rms", text.rms_norm_eps)),
        )


PART = Idefics3Weights()
