"""A `Backbone` (backbone.py) whose tower reads squares of patches that merge into visual tokens, and whose decoder
turns by three positions.

Place in the pipeline: backbones of families whose pictures lrkit/families/common/merged_patches.py cuts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lrkit.families.common.mrope import VisualPositions, visual_positions
from lrkit.families.protocols import Grid
from lrkit.model.backbone import WeightPart
from lrkit.model.decoder_backbone import DecoderBackbone
from lrkit.model.patch_order import PatchOrder


class MergedPatchBackbone(DecoderBackbone):
    """What is left to the family: the classes of transformers, and `width_name`."""

    parts: ClassVar[Mapping[str, WeightPart]] = {
        "visual.merger": "merger", "visual": "vision", "embed_tokens": "embedding", "lm_head": "head"
    }  # fmt: skip
    width_name: ClassVar[str] = "hidden_size"
    """What the tower's config calls its width."""
    axes = 3

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.visual_positions: VisualPositions = "grid"
        vision: Any = model.config.vision_config
        self._order = PatchOrder(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        self.patches_per_token = vision.spatial_merge_size**2
        self.attention = self.attention_sizes(getattr(vision, self.width_name), vision.depth)
        self.picture_sizes, self.token_raster = self._order.picture_sizes, self._order.token_raster
        self.unpatch, self.patch = self._order.unpatch, self._order.patch

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """See model/backbone.py."""
        tower = self.model.model.visual
        return tower(pixel_values.to(tower.dtype), grid_thw=grids).pooler_output

    def prompt_positions(self, ids: Sequence[int], grids: Sequence[Grid]) -> Tensor:
        """(3, P)."""
        merge = self._order.merge_size
        return torch.from_numpy(visual_positions(self.visual_positions, ids, self.image_token_id, grids, merge))
