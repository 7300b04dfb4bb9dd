"""Qwen2-VL of any size with random weights: for training from nothing, and to judge a device before any download."""

from typing import Any

from lrkit.families.common.mrope_fresh import PLAIN, around_the_tower
from lrkit.families.protocols import ModelSizes, ModelTokens
from lrkit.families.qwen2_vl.geometry import ImageGeometry


class FreshQwen2VL:
    """Implements `FreshModels`."""

    def geometry(
        self, patch_size: int, merge_size: int, min_pixels: int, max_pixels: int, plain: bool
    ) -> ImageGeometry:
        """Two frames per patch, as published."""
        levels = PLAIN if plain else {}
        return ImageGeometry(
            patch_size=patch_size, merge_size=merge_size, temporal_patch_size=2, min_pixels=min_pixels,
            max_pixels=max_pixels, **levels,
        )  # fmt: skip

    def config(self, sizes: ModelSizes, geometry: ImageGeometry, tokens: ModelTokens) -> Any:
        """A Qwen2VLConfig."""
        from transformers import Qwen2VLConfig

        return Qwen2VLConfig(vision_config=_vision(sizes, geometry), **around_the_tower(sizes, tokens))

    def model(self, config: Any) -> Any:
        """Random weights from torch's current generator."""
        from transformers import Qwen2VLForConditionalGeneration

        return Qwen2VLForConditionalGeneration(config)


def _vision(sizes: ModelSizes, geometry: ImageGeometry) -> dict[str, Any]:
    return {
        "depth": sizes.vision_depth, "embed_dim": sizes.vision_width, "hidden_size": sizes.hidden_size,
        "num_heads": sizes.vision_heads, "mlp_ratio": sizes.vision_mlp_ratio, "patch_size": geometry.patch_size,
        "spatial_merge_size": geometry.merge_size, "temporal_patch_size": geometry.temporal_patch_size,
    }  # fmt: skip


PART = FreshQwen2VL()
