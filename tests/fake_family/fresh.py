"""The fake family of any size with random weights."""

from typing import Any

from lrkit.families.protocols import ModelSizes, ModelTokens
from tests.fake_family.geometry import RowwiseGeometry


class FreshRowwise:
    """Implements `FreshModels`."""

    def geometry(
        self, patch_size: int, merge_size: int, min_pixels: int, max_pixels: int, plain: bool
    ) -> RowwiseGeometry:
        """A patch is as large as what would be merged; every family's numbers are -1 to 1."""
        return RowwiseGeometry(patch_size=patch_size * merge_size, max_pixels=max_pixels)

    def config(self, sizes: ModelSizes, geometry: RowwiseGeometry, tokens: ModelTokens) -> Any:
        """A RowwiseConfig."""
        from tests.fake_family.model import RowwiseConfig

        text = {
            "vocab_size": sizes.vocabulary, "hidden_size": sizes.hidden_size,
            "intermediate_size": sizes.intermediate_size, "num_hidden_layers": sizes.num_layers,
            "num_attention_heads": sizes.num_heads, "num_key_value_heads": sizes.num_kv_heads,
            "max_position_embeddings": sizes.max_positions or 4096, "bos_token_id": None, "eos_token_id": tokens.eos,
            "pad_token_id": tokens.pad, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": sizes.rope_theta},
        }  # fmt: skip
        eye = {"width": sizes.vision_width, "depth": sizes.vision_depth, "patch_size": geometry.patch_size}
        return RowwiseConfig(text, eye, tokens.image)

    def model(self, config: Any) -> Any:
        """Random weights from torch's current generator."""
        from tests.fake_family.model import RowwiseModel

        return RowwiseModel(config)


PART = FreshRowwise()
