"""The larger part of a `WeightReader` (reader.py), for families whose language model is a decoder of transformers with
the module names of Llama's: every part of a layer is a tensor of its own.
"""

from typing import ClassVar

import numpy as np

from lrkit.export.weights.reader import LLAMA_PARTS, Read


class DecoderWeights:
    """What is left to the family: `tower`, `new_tower` and `dimensions`."""

    text: ClassVar[str] = "model.language_model"
    """Where the decoder lies in the model."""
    head = "lm_head.weight"

    @property
    def embedding(self) -> str:
        """The token embedding."""
        return f"{self.text}.embed_tokens.weight"

    def final_norm(self, read: Read, kind: str) -> np.ndarray:
        """See `WeightReader.final_norm`."""
        return read(f"{self.text}.norm.{kind}")

    def layer(self, read: Read, number: int, part: str, kind: str) -> np.ndarray:
        """See `WeightReader.layer`."""
        return read(f"{self.text}.layers.{number}.{LLAMA_PARTS[part]}.{kind}")
