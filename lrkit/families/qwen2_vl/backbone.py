"""Qwen2-VL of any size, by transformers: its own layers, vision tower and rotary positions, wrapped and not copied."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lrkit.families.protocols import Grid
from lrkit.families.qwen2_vl.positions import mrope_positions
from lrkit.model.backbone import AttentionSizes, WeightPart, part_by_piece
from lrkit.model.keys import LayerCache, cache_argument
from lrkit.model.routing import Rotary
from lrkit.model.saliency import SaliencyRow, register

_PARTS: dict[str, WeightPart] = {
    "visual.merger": "merger", "visual": "vision", "embed_tokens": "embedding", "lm_head": "head"
}  # fmt: skip


class Qwen2VLBackbone:
    """Implements `Backbone` (model/backbone.py) for Qwen2VLForConditionalGeneration."""

    model: Qwen2VLForConditionalGeneration
    lora_targets = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        self.model = model
        # Only the language model reads saliency; the tower keeps plain SDPA.
        model.set_attn_implementation({"text_config": register(), "vision_config": "sdpa"})
        self._text = model.model.language_model
        self._cache_name = cache_argument(self._text.layers[0])
        # transformers declares its sub-configs as dict or None too; a model's own always are config objects.
        text: Any = model.config.text_config
        self._vision: Any = model.config.vision_config
        self.hidden_size: int = text.hidden_size
        self.num_layers: int = text.num_hidden_layers
        self.image_token_id: int = model.config.image_token_id
        self.axes = 3
        self._merge: int = self._vision.spatial_merge_size
        self.patches_per_token = self._merge**2
        self.attention = AttentionSizes(
            query_width=text.hidden_size,
            key_width=text.num_key_value_heads * (text.hidden_size // text.num_attention_heads),
            vision_width=self._vision.embed_dim,
            vision_depth=self._vision.depth,
        )
        self.tied_embeddings: bool = model.lm_head.weight is self._text.embed_tokens.weight

    @classmethod
    def from_pretrained(
        cls, path: str, dtype: torch.dtype | None = None, config: Mapping[str, Any] | None = None
    ) -> "Qwen2VLBackbone":
        """Loads a local folder; `dtype` None keeps the type on disk, `config` None takes the folder's config.json as it
        is. Nothing is downloaded, and no code of the folder is run."""
        given = None if config is None else cls.config_from(config)
        model = Qwen2VLForConditionalGeneration.from_pretrained(
            path,
            config=given,
            dtype=dtype or "auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
        return cls(model)

    @staticmethod
    def config_from(values: Mapping[str, Any]) -> Qwen2VLConfig:
        """transformers' config object; `values` stay as they are."""
        return Qwen2VLConfig(**copy.deepcopy(dict(values)))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self._text.embed_tokens(ids)

    def embedding_rows(self) -> Tensor:
        return self._text.embed_tokens.weight

    def head_rows(self) -> Tensor:
        return self.model.lm_head.weight

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        tower = self.model.model.visual
        return tower(pixel_values.to(tower.dtype), grid_thw=grids).pooler_output

    def prompt_positions(self, ids: Sequence[int], grids: Sequence[Grid]) -> Tensor:
        return torch.from_numpy(mrope_positions(ids, self.image_token_id, grids, self._merge))

    def rotary(self, positions_ABS: Tensor, like: Tensor) -> Rotary:
        return self._text.rotary_emb(like, positions_ABS)

    def run_layer(
        self,
        layer: int,
        hidden_BSD: Tensor,
        mask_B1SN: Tensor | None,
        rotary: Rotary,
        cache: LayerCache,
        saliency: SaliencyRow | None = None,
    ) -> Tensor:
        return self._text.layers[layer](
            hidden_BSD,
            attention_mask=mask_B1SN,
            position_embeddings=rotary,
            use_cache=True,
            saliency=saliency,
            **{self._cache_name: cache},
        )

    def final_norm(self, hidden_BSD: Tensor) -> Tensor:
        return self._text.norm(hidden_BSD)

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden)

    def picture_sizes(self, grid: Grid) -> tuple[int, int]:
        frames, rows, columns = grid
        return frames * rows * columns, frames * (rows // self._merge) * (columns // self._merge)

    def token_raster(self, values_V: Tensor, grid: Grid) -> Tensor:
        return values_V.view(-1, grid[1] // self._merge, grid[2] // self._merge).any(0)

    def unpatch(self, patches: Tensor, grid: Grid) -> Tensor:
        """See model/backbone.py. The patch order is (t, h/m, w/m, m, m) and a patch is (channel, frame, row,
        column)."""
        time, height, width = grid
        merge, size = self._merge, self._vision.patch_size
        shape = (
            time,
            height // merge,
            width // merge,
            merge,
            merge,
            3,
            self._vision.temporal_patch_size,
            size,
            size,
        )
        image = patches.view(shape)[0, :, :, :, :, :, 0]  # an image is one frame, repeated
        return image.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, height * size, width * size)

    def patch(self, image: Tensor) -> Tensor:
        merge, size, frames = (
            self._merge,
            self._vision.patch_size,
            self._vision.temporal_patch_size,
        )
        channels, height, width = image.shape
        rows, columns = height // (size * merge), width // (size * merge)
        tiles = image.reshape(channels, rows, merge, size, columns, merge, size).permute(1, 4, 2, 5, 0, 3, 6)
        tiles = tiles[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, frames, -1, -1)
        return tiles.reshape(rows * columns * merge * merge, channels * frames * size * size)

    def part_of(self, name: str) -> WeightPart:
        return part_by_piece(name, _PARTS)


PART = Qwen2VLBackbone
