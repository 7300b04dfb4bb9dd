"""How Chameleon's language model lies in its weights, for an export. Implements `WeightReader`."""

from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from lrkit.export.weights.decoder_weights import DecoderWeights
from lrkit.export.weights.layer_recipe import Dimensions, LayerRecipe, Norm, known
from lrkit.export.weights.reader import Read
from lrkit.families.chameleon.vocabulary import visual_words

_HEAD_EPSILON = 1e-5
"""Of the norms over heads; no config names it."""
_BEHIND = {"after1": "norm1", "after2": "norm2"}


class ChameleonWeights(DecoderWeights):
    """See export/weights/reader.py."""

    text = "model"
    tower = "model.vqmodel"
    spreads = MappingProxyType({f"{tower}.quantize.embedding.weight": 1.0})
    """For random weights: codes so far apart that rounding in the encoder chooses no other, as those of a trained
    quantizer are."""

    def new_tower(self, config: Any) -> nn.Module:
        """transformers' own, with the token ids of its codes as `words`."""
        from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

        tower: nn.Module = ChameleonVQVAE._from_config(config.vq_config)  # pyright: ignore
        tower.register_buffer("words", torch.tensor(visual_words(config.vocabulary_map)), persistent=False)
        return tower

    def dimensions(self, config: Any) -> Dimensions:
        """From a ChameleonConfig. Raises `ExportError` as the protocol says."""
        from transformers.models.chameleon.modeling_chameleon import ChameleonRotaryEmbedding

        known("activation", config.hidden_act, ["silu"])
        known("rotary type", config.rope_parameters["rope_type"], ["default"])
        frequencies = ChameleonRotaryEmbedding(config).inv_freq
        recipe = LayerRecipe(
            norm=Norm("rms", config.rms_norm_eps),
            norm_places=frozenset({"after" if config.swin_norm else "before"}),
            head_norm=Norm("layer", _HEAD_EPSILON),
        )
        return Dimensions(
            width=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_key_heads=config.num_key_value_heads,
            head_width=config.hidden_size // config.num_attention_heads,
            inner=config.intermediate_size,
            vocabulary=config.vocab_size,
            inverse_frequencies=tuple(float(f) for f in frequencies),
            rotary_axes=(0,) * len(frequencies),
            recipe=recipe,
            never_spoken=visual_words(config.vocabulary_map),
        )

    def layer(self, read: Read, number: int, part: str, kind: str) -> np.ndarray:
        """The 34B's norms stand behind attention and the feed-forward part, under the names of those in front."""
        return super().layer(read, number, _BEHIND.get(part, part), kind)


PART = ChameleonWeights()
