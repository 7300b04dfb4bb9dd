"""Idefics3 of any size with random weights."""

import math
from typing import Any, ClassVar

from lrkit.families.idefics3.geometry import SplitPictures
from lrkit.families.protocols import ModelSizes, ModelTokens


class FreshIdefics3:
    """Implements `FreshModels`."""

    pictures: ClassVar[type[SplitPictures]] = SplitPictures

    def geometry(
        self, patch_size: int, merge_size: int, min_pixels: int, max_pixels: int, plain: bool
    ) -> SplitPictures:
        """One view, as large as fits; numbers of the published models are -1 to 1 too."""
        square = patch_size * merge_size
        tile = max(square, math.isqrt(max_pixels) // square * square)
        return self.pictures(patch_size=patch_size, scale_factor=merge_size, tile=tile, longest_edge=tile)

    def config(self, sizes: ModelSizes, geometry: SplitPictures, tokens: ModelTokens) -> Any:
        """transformers' config."""
        return self._classes()[0](
            text_config=_text(sizes, tokens),
            vision_config=_vision(sizes, geometry),
            image_token_id=tokens.image,
            scale_factor=geometry.scale_factor,
            tie_word_embeddings=sizes.tied_embeddings,
        )

    def model(self, config: Any) -> Any:
        """Random weights from torch's current generator."""
        return self._classes()[1](config)

    def _classes(self) -> tuple[Any, Any]:
        from transformers import Idefics3Config, Idefics3ForConditionalGeneration

        return Idefics3Config, Idefics3ForConditionalGeneration


def _text(sizes: ModelSizes, tokens: ModelTokens) -> dict[str, Any]:
    given = {} if sizes.max_positions is None else {"max_position_embeddings": sizes.max_positions}
    return {
        "model_type": "llama", "vocab_size": sizes.vocabulary, "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size, "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads, "num_key_value_heads": sizes.num_kv_heads,
        "tie_word_embeddings": sizes.tied_embeddings, "bos_token_id": None, "eos_token_id": tokens.eos,
        "pad_token_id": tokens.pad, "rope_parameters": {"rope_type": "default", "rope_theta": sizes.rope_theta},
        **given,
    }  # fmt: skip


def _vision(sizes: ModelSizes, geometry: SplitPictures) -> dict[str, Any]:
    return {
        "num_hidden_layers": sizes.vision_depth, "hidden_size": sizes.vision_width,
        "intermediate_size": sizes.vision_width * sizes.vision_mlp_ratio, "num_attention_heads": sizes.vision_heads,
        "image_size": geometry.tile, "patch_size": geometry.patch_size,
    }  # fmt: skip


PART = FreshIdefics3()
