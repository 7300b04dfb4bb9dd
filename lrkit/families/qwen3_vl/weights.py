"""How Qwen3-VL's language model lies in its weights, for an export. Implements `WeightReader`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lrkit.export.weights.decoder_weights import DecoderWeights
from lrkit.export.weights.layer_recipe import Dimensions, LayerRecipe
from lrkit.export.weights.mrope_dimensions import mrope_dimensions


class Qwen3VLWeights(DecoderWeights):
    """See export/weights/reader.py."""

    tower = "model.visual"

    def new_tower(self, config: Any) -> nn.Module:
        """transformers' own."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

        return Qwen3VLVisionModel._from_config(config.vision_config)  # pyright: ignore

    def dimensions(self, config: Any) -> Dimensions:
        """From a Qwen3VLConfig. Raises `ExportError` as the protocol says."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

        text = config.text_config
        known = mrope_dimensions(text, Qwen3VLTextRotaryEmbedding(text))
        norm = known.recipe.norm
        return replace(
            known,
            head_width=text.head_dim,
            rotary_axes=interleaved_axes(text.rope_parameters["mrope_section"], len(known.inverse_frequencies)),
            recipe=LayerRecipe(norm=norm, head_norm=norm),
            deep_layers=tuple(range(len(config.vision_config.deepstack_visual_indexes))),
        )


def interleaved_axes(sections: Sequence[int], count: int) -> tuple[int, ...]:
    """By frequency the axis that turns it: height has every third one from the second on, width from the third on, as
    many as its section says; time has the others."""
    return tuple(turn if (turn := index % 3) and index < 3 * sections[turn] else 0 for index in range(count))


PART = Qwen3VLWeights()
