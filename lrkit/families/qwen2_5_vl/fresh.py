"""Qwen2.5-VL of any size with random weights: for training from nothing, and to judge a device before any download."""

from typing import Any

from lrkit.families.common.mrope_fresh import PLAIN, around_the_tower
from lrkit.families.protocols import ModelSizes, ModelTokens
from lrkit.families.qwen2_5_vl.geometry import WindowedPatches

_SIDE = 4
"""Visual tokens on a side of a window, as published."""
_EVERY = 8
"""Of so many layers of the tower the last one attends to the whole picture, as published."""


class FreshQwen25VL:
    """Implements `FreshModels`."""

    def geometry(
        self, patch_size: int, merge_size: int, min_pixels: int, max_pixels: int, plain: bool
    ) -> WindowedPatches:
        """Two frames per patch and windows of as many visual tokens as published."""
        levels = PLAIN if plain else {}
        return WindowedPatches(
            patch_size=patch_size, merge_size=merge_size, temporal_patch_size=2, min_pixels=min_pixels,
            max_pixels=max_pixels, window_size=_SIDE * patch_size * merge_size, **levels,
        )  # fmt: skip

    def config(self, sizes: ModelSizes, geometry: WindowedPatches, tokens: ModelTokens) -> Any:
        """A Qwen2_5_VLConfig."""
        from transformers import Qwen2_5_VLConfig

        return Qwen2_5_VLConfig(vision_config=_vision(sizes, geometry), **around_the_tower(sizes, tokens))

    def model(self, config: Any) -> Any:
        """Random weights from torch's current generator."""
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration(config)


def _vision(sizes: ModelSizes, geometry: WindowedPatches) -> dict[str, Any]:
    depth = sizes.vision_depth
    whole = sorted({*range(_EVERY - 1, depth, _EVERY), depth - 1})
    return {
        "depth": depth, "hidden_size": sizes.vision_width, "out_hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.vision_width * sizes.vision_mlp_ratio, "num_heads": sizes.vision_heads,
        "patch_size": geometry.patch_size, "spatial_merge_size": geometry.merge_size,
        "temporal_patch_size": geometry.temporal_patch_size, "window_size": geometry.window_size,
        "fullatt_block_indexes": whole,
    }  # fmt: skip


PART = FreshQwen25VL()
