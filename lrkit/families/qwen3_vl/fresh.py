"""Qwen3-VL of any size with random weights: for training from nothing, and to judge a device before any download."""

from typing import Any

from lrkit.families.protocols import ModelSizes, ModelTokens
from lrkit.families.qwen3_vl.geometry import Qwen3VLPatches

_HALVES = (0.5, 0.5, 0.5)
_TABLE_SIDE = 48
"""Of the square of learnt positions, as published."""


class FreshQwen3VL:
    """Implements `FreshModels`."""

    def geometry(
        self, patch_size: int, merge_size: int, min_pixels: int, max_pixels: int, plain: bool
    ) -> Qwen3VLPatches:
        """Two frames per patch, as published, where pictures are normalised to -1..1 too."""
        return Qwen3VLPatches(
            patch_size=patch_size, merge_size=merge_size, temporal_patch_size=2, min_pixels=min_pixels,
            max_pixels=max_pixels, image_mean=_HALVES, image_std=_HALVES,
        )  # fmt: skip

    def config(self, sizes: ModelSizes, geometry: Qwen3VLPatches, tokens: ModelTokens) -> Any:
        """A Qwen3VLConfig."""
        from transformers import Qwen3VLConfig

        around: dict[str, int | None] = {
            "vision_start_token_id": tokens.picture_start, "vision_end_token_id": tokens.picture_end
        }  # fmt: skip
        given: dict[str, Any] = {key: index for key, index in around.items() if index is not None}
        return Qwen3VLConfig(
            text_config=_text(sizes, tokens),
            vision_config=_vision(sizes, geometry),
            image_token_id=tokens.image,
            video_token_id=tokens.unused,  # no video ever enters
            tie_word_embeddings=sizes.tied_embeddings,
            **given,
        )

    def model(self, config: Any) -> Any:
        """Random weights from torch's current generator."""
        from transformers import Qwen3VLForConditionalGeneration

        return Qwen3VLForConditionalGeneration(config)


def _text(sizes: ModelSizes, tokens: ModelTokens) -> dict[str, Any]:
    width = sizes.hidden_size // sizes.num_heads
    # The family's own proportions: 24, 20 and 20 of 64 rotary pairs for time, height and width.
    side = 5 * width // 32
    given = {} if sizes.max_positions is None else {"max_position_embeddings": sizes.max_positions}
    return {
        "vocab_size": sizes.vocabulary, "hidden_size": sizes.hidden_size, "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers, "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads, "head_dim": width, "tie_word_embeddings": sizes.tied_embeddings,
        "bos_token_id": None, "eos_token_id": tokens.eos, "pad_token_id": tokens.pad,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": sizes.rope_theta, "mrope_interleaved": True,
            "mrope_section": [width // 2 - 2 * side, side, side],
        },
        **given,
    }  # fmt: skip


def _vision(sizes: ModelSizes, geometry: Qwen3VLPatches) -> dict[str, Any]:
    """Features of up to three layers go deep, a quarter of the tower apart."""
    depth, count = sizes.vision_depth, min(3, sizes.num_layers)
    deep = sorted({max(0, depth * (quarter + 1) // 4 - 1) for quarter in range(count)})
    return {
        "depth": depth, "hidden_size": sizes.vision_width, "out_hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.vision_width * sizes.vision_mlp_ratio, "num_heads": sizes.vision_heads,
        "num_position_embeddings": _TABLE_SIDE**2, "deepstack_visual_indexes": deep,
        "patch_size": geometry.patch_size, "spatial_merge_size": geometry.merge_size,
        "temporal_patch_size": geometry.temporal_patch_size,
    }  # fmt: skip


PART = FreshQwen3VL()
