"""Chameleon of any size, by transformers: its own layers and tower, wrapped and not copied.

A picture becomes codes, and a code is a word: what enters the language model is the word's row of the token embedding,
so that pictures and text train one matrix. The tower itself gets no gradient, because a choice of codes has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from lrkit.families.chameleon.work import products
from lrkit.families.protocols import Grid
from lrkit.model.backbone import WeightPart
from lrkit.model.decoder_backbone import DecoderBackbone
from lrkit.model.keys import LayerCache
from lrkit.model.routing import Rotary
from lrkit.model.saliency import SaliencyRow


class ChameleonBackbone(DecoderBackbone):
    """Implements `Backbone` and `ChoosingBackbone` (model/backbone.py) for ChameleonForConditionalGeneration."""

    model_class: ClassVar[Any] = ChameleonForConditionalGeneration
    config_class: ClassVar[Any] = ChameleonConfig
    parts: ClassVar[Mapping[str, WeightPart]] = {
        "vqmodel": "vision", "embed_tokens": "embedding", "lm_head": "head"
    }  # fmt: skip
    decoder_name = "model"
    decoder_config = ""
    tower_config = "vq_config"
    lora_targets = r".*model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    patches_per_token = 1
    given_tokens: Tensor | None = None

    def __init__(self, model: ChameleonForConditionalGeneration) -> None:
        super().__init__(model)
        # transformers declares its sub-configs as dict or None too; a model's own always are config objects.
        vision: Any = model.config.vq_config
        self._side = 1 << (len(vision.channel_multiplier) - 1)
        sizes = self.attention_sizes(vision.base_channels * vision.channel_multiplier[-1], 1)
        self.attention = replace(sizes, vision_products=products(self.decoder.vqmodel))
        self._codes: Tensor = torch.tensor(self.decoder.vocabulary_mapping.image_tokens)

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """The token embedding's rows of the pictures' codes."""
        given = self.given_tokens
        return self.embed_tokens(self.choose_tokens(pixel_values, grids) if given is None else given)

    def choose_tokens(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """The words of the pictures' codes."""
        images = self._squares(pixel_values, *(int(side) for side in grids[0]))
        with torch.no_grad():
            return self.decoder.get_image_tokens(images.to(self.decoder.vqmodel.dtype)).flatten().long()

    def prompt_positions(self, ids: Sequence[int], grids: Sequence[Grid]) -> Tensor:
        """(1, P)."""
        return torch.arange(len(ids))[None]

    def run_layer(
        self,
        layer: int,
        hidden_BSD: Tensor,
        mask_B1SN: Tensor | None,
        rotary: Rotary,
        cache: LayerCache,
        saliency: SaliencyRow | None = None,
    ) -> Tensor:
        """One transformer layer, which gives a tuple here."""
        made: Any = super().run_layer(layer, hidden_BSD, mask_B1SN, rotary, cache, saliency)
        return made[0]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits; the codes of pictures are never said, as transformers has it."""
        logits = self.model.lm_head(hidden)
        self._codes = self._codes.to(logits.device)
        return logits.index_fill(-1, self._codes, torch.finfo(logits.dtype).min)

    def picture_sizes(self, grid: Grid) -> tuple[int, int]:
        """A patch for each visual token."""
        return grid[0] * grid[1], grid[0] * grid[1]

    def token_raster(self, values_V: Tensor, grid: Grid) -> Tensor:
        """Visual tokens run row by row."""
        return values_V.view(grid[0], grid[1])

    def unpatch(self, patches: Tensor, grid: Grid) -> Tensor:
        """See model/backbone.py."""
        return self._squares(patches, *grid)[0]

    def patch(self, image: Tensor) -> Tensor:
        """See model/backbone.py."""
        side = self._side
        rows, columns = image.shape[1] // side, image.shape[2] // side
        tiles = image.reshape(3, rows, side, columns, side)
        return tiles.permute(1, 3, 0, 2, 4).reshape(rows * columns, -1)

    def _squares(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Patches (N, C) of pictures -> (pictures, 3, height, width)."""
        tiles = patches.reshape(-1, rows, columns, 3, self._side, self._side)
        return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, rows * self._side, columns * self._side)


PART = ChameleonBackbone
