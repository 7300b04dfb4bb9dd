"""How the fake family's model lies in its weights, for an export."""

from typing import Any

import numpy as np
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lrkit.export.weights.layer_recipe import Dimensions, LayerRecipe, Norm
from lrkit.export.weights.reader import LLAMA_PARTS, Read
from tests.fake_family.model import Eye, text_config


class RowwiseWeights:
    """Implements `WeightReader` (lrkit/export/weights/reader.py)."""

    embedding = "words.embed_tokens.weight"
    head = "lm_head.weight"
    tower = "eye"

    def new_tower(self, config: Any) -> nn.Module:
        return Eye(**config.eye, out=config.text["hidden_size"])

    def dimensions(self, config: Any) -> Dimensions:
        text, normed = text_config(config.text), "head_dim" in config.text
        frequencies = LlamaRotaryEmbedding(text).inv_freq
        norm = Norm("rms", text.rms_norm_eps)
        return Dimensions(
            width=text.hidden_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_key_heads=text.num_key_value_heads,
            head_width=text.head_dim,
            inner=text.intermediate_size,
            vocabulary=text.vocab_size,
            inverse_frequencies=tuple(map(float, frequencies)),
            rotary_axes=(0,) * len(frequencies),
            recipe=LayerRecipe(norm, head_norm=norm if normed else None),
            deep_layers=tuple(range(len(config.eye.get("deep", ())))),
        )

    def final_norm(self, read: Read, kind: str) -> np.ndarray:
        return read(f"words.norm.{kind}")

    def layer(self, read: Read, number: int, part: str, kind: str) -> np.ndarray:
        return read(f"words.layers.{number}.{LLAMA_PARTS[part]}.{kind}")


PART = RowwiseWeights()
