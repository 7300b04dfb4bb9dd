"""Qwen2-VL of any size with random weights: for training from nothing, and to judge a device before any download."""

from typing import Any

from lrkit.families.protocols import ModelSizes, ModelTokens
from lrkit.families.qwen2_vl.geometry import ImageGeometry

_HALVES = (0.5, 0.5, 0.5)


class FreshQwen2VL:
    """Implements `FreshModels`."""

    def geometry(
        self, patch_size: int, merge_size: int, min_pixels: int, max_pixels: int, plain: bool
    ) -> ImageGeometry:
        """Two frames per patch, as published."""
        levels: dict[str, Any] = {"image_mean": _HALVES, "image_std": _HALVES} if plain else {}
        return ImageGeometry(
            patch_size=patch_size, merge_size=merge_size, temporal_patch_size=2, min_pixels=min_pixels,
            max_pixels=max_pixels, **levels,
        )  # fmt: skip

    def config(self, sizes: ModelSizes, geometry: ImageGeometry, tokens: ModelTokens) -> Any:
        """A Qwen2VLConfig."""
        from transformers import Qwen2VLConfig

        around: dict[str, int | None] = {
            "vision_start_token_id": tokens.picture_start, "vision_end_token_id": tokens.picture_end
        }  # fmt: skip
        given: dict[str, Any] = {key: index for key, index in around.items() if index is not None}
        return Qwen2VLConfig(
            text_config=_text(sizes, tokens),
            vision_config=_vision(sizes, geometry),
            image_token_id=tokens.image,
            video_token_id=tokens.unused,  # no video ever enters
            tie_word_embeddings=sizes.tied_embeddings,
            **given,
        )

    def model(self, config: Any) -> Any:
        """Random weights from torch's current generator."""
        from transformers import Qwen2VLForConditionalGeneration

        return Qwen2VLForConditionalGeneration(config)


def _text(sizes: ModelSizes, tokens: ModelTokens) -> dict[str, Any]:
    half_head = sizes.hidden_size // sizes.num_heads // 2
    # Qwen2-VL's own proportions: a quarter of the rotary pairs for time, the rest shared by height and width.
    time = half_head // 4
    height = (half_head - time) // 2
    sections = [time, height, half_head - time - height]
    given = {} if sizes.max_positions is None else {"max_position_embeddings": sizes.max_positions}
    return {
        "vocab_size": sizes.vocabulary, "hidden_size": sizes.hidden_size, "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers, "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads, "tie_word_embeddings": sizes.tied_embeddings, "bos_token_id": None,
        "eos_token_id": tokens.eos, "pad_token_id": tokens.pad,
        "rope_parameters": {"rope_type": "default", "rope_theta": sizes.rope_theta, "mrope_section": sections},
        **given,
    }  # fmt: skip


def _vision(sizes: ModelSizes, geometry: ImageGeometry) -> dict[str, Any]:
    return {
        "depth": sizes.vision_depth, "embed_dim": sizes.vision_width, "hidden_size": sizes.hidden_size,
        "num_heads": sizes.vision_heads, "mlp_ratio": sizes.vision_mlp_ratio, "patch_size": geometry.patch_size,
        "spatial_merge_size": geometry.merge_size, "temporal_patch_size": geometry.temporal_patch_size,
    }  # fmt: skip


PART = FreshQwen2VL()
