"""Chameleon of any size with random weights: for training from nothing, and to judge a device before any download."""

from typing import Any

from lrkit.errors import ConfigError
from lrkit.families.chameleon.geometry import SquareGeometry
from lrkit.families.chameleon.vocabulary import IMAGE, code_name
from lrkit.families.protocols import ModelSizes, ModelTokens

_GROUPS = 32
"""Of the tower's group norms: its channels are multiples of it."""

_CODES = 512
"""Of the quantizer; published sizes have 8,192."""


class FreshChameleon:
    """Implements `FreshModels`."""

    def geometry(
        self, patch_size: int, merge_size: int, min_pixels: int, max_pixels: int, plain: bool
    ) -> SquareGeometry:
        """Squares of at most so many pixels, of tokens of patch_size * merge_size pixels a side.

        Raises:
            ConfigError: that side is no power of two, by which alone the tower can shrink a picture.
        """
        side = patch_size * merge_size
        if side & (side - 1):
            raise ConfigError(f"patch_size * merge_size is {side}; this family needs a power of two, such as 16")
        whole = max(1, int(max_pixels**0.5) // side) * side
        levels: dict[str, Any] = {"rescale_factor": 1 / 127.5} if plain else {}
        return SquareGeometry(shortest_edge=whole, crop_size=whole, token_side=side, **levels)

    def config(self, sizes: ModelSizes, geometry: SquareGeometry, tokens: ModelTokens) -> Any:
        """A ChameleonConfig. The codes of pictures are rows behind those of the words."""
        from transformers import ChameleonConfig

        words = {code_name(code): sizes.vocabulary + code for code in range(_CODES)} | {IMAGE: tokens.image}
        given: dict[str, Any] = {} if sizes.max_positions is None else {"max_position_embeddings": sizes.max_positions}
        return ChameleonConfig(
            vocab_size=sizes.vocabulary + _CODES, hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size, num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads, tie_word_embeddings=sizes.tied_embeddings,
            bos_token_id=None,
            eos_token_id=tokens.eos, pad_token_id=tokens.pad,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
            vq_config=_vision(sizes, geometry), vocabulary_map=words, **given,
        )  # fmt: skip

    def model(self, config: Any) -> Any:
        """Random weights from torch's current generator."""
        from transformers import ChameleonForConditionalGeneration

        return ChameleonForConditionalGeneration(config)


def _vision(sizes: ModelSizes, geometry: SquareGeometry) -> dict[str, Any]:
    """A tower of equal widths, with so many levels that a token's side becomes one number."""
    width = -(-sizes.vision_width // _GROUPS) * _GROUPS
    levels = geometry.token_side.bit_length()
    return {
        "embed_dim": width, "latent_channels": width, "num_embeddings": _CODES, "resolution": geometry.crop_size,
        "base_channels": width, "channel_multiplier": [1] * levels, "num_res_blocks": max(1, sizes.vision_depth),
    }  # fmt: skip


PART = FreshChameleon()
