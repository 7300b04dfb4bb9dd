"""How Qwen2-VL's language model lies in its weights, for an export. Implements `WeightReader`."""

from typing import Any

from torch import nn

from lrkit.errors import ExportError
from lrkit.export.weights.decoder_weights import DecoderWeights
from lrkit.export.weights.layer_recipe import Dimensions, LayerRecipe, Norm, known


class Qwen2VLWeights(DecoderWeights):
    """See export/weights/reader.py."""

    tower = "model.visual"

    def new_tower(self, config: Any) -> nn.Module:
        """transformers' own."""
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

        return Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config)  # pyright: ignore

    def dimensions(self, config: Any) -> Dimensions:
        """From a Qwen2VLConfig. Raises `ExportError` as the protocol says."""
        text = config.text_config
        if getattr(text, "use_sliding_window", False) and "sliding_attention" in text.layer_types:
            raise ExportError(
                "the backbone uses sliding-window attention; a program attends to all tokens: export another"
            )
        known("activation", text.hidden_act, ["silu"])
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

        rotary = Qwen2VLRotaryEmbedding(text)
        kind = text.rope_parameters["rope_type"]
        known("rotary type", kind if rotary.attention_scaling == 1.0 else f"{kind}, scaled", ["default"])
        counts = text.rope_parameters["mrope_section"]
        return Dimensions(
            width=text.hidden_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_key_heads=text.num_key_value_heads,
            head_width=text.hidden_size // text.num_attention_heads,
            inner=text.intermediate_size,
            vocabulary=text.vocab_size,
            inverse_frequencies=tuple(float(f) for f in rotary.inv_freq),
            rotary_axes=tuple(axis % 3 for axis, count in enumerate(counts) for _ in range(count)),
            recipe=LayerRecipe(norm=Norm("rms", text.rms_norm_eps), biases=frozenset({"qkv"})),
        )


PART = Qwen2VLWeights()
