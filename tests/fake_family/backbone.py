"""The fake family on torch."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lrkit.contract.attention import Attention
from lrkit.families.protocols import Grid
from lrkit.model.backbone import AttentionSizes, WeightPart, part_by_piece
from lrkit.model.keys import LayerCache, cache_argument
from lrkit.model.routing import Rotary
from lrkit.model.saliency import SaliencyRow, register
from tests.fake_family.geometry import patch_places
from tests.fake_family.model import RowwiseConfig, RowwiseModel

_PARTS: dict[str, WeightPart] = {
    "eye.out": "merger", "eye.deep": "merger", "eye": "vision", "embed_tokens": "embedding", "lm_head": "head"
}  # fmt: skip


class RowwiseBackbone:
    """Implements `Backbone` (lrkit/model/backbone.py)."""

    lora_targets = r"words\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    axes = 1
    patches_per_token = 1
    tied_embeddings = False

    def __init__(self, model: RowwiseModel) -> None:
        self.model = model
        self._words: Any = model.words
        self.use_attention(Attention())
        self._cache_name = cache_argument(self._words.layers[0])
        text, eye = self._words.config, model.config.eye
        self.hidden_size: int = text.hidden_size
        self.num_layers: int = text.num_hidden_layers
        self.image_token_id: int = model.config.image_token_id
        self.deep_layers = tuple(range(len(model.eye.deep)))
        self._side: int = eye["patch_size"]
        attention = self._words.layers[0].self_attn
        queries, keys = attention.q_proj.out_features, attention.k_proj.out_features
        self.attention = AttentionSizes(queries, keys, eye["width"], eye["depth"])

    @classmethod
    def from_pretrained(
        cls, path: str, dtype: torch.dtype | None = None, config: Mapping[str, Any] | None = None
    ) -> "RowwiseBackbone":
        given = None if config is None else cls.config_from(config)
        model = RowwiseModel.from_pretrained(
            path, config=given, dtype=dtype or "auto", local_files_only=True, use_safetensors=True
        )
        return cls(model)

    @staticmethod
    def config_from(values: Mapping[str, Any]) -> RowwiseConfig:
        return RowwiseConfig(**copy.deepcopy(dict(values)))

    def use_attention(self, attention: Attention) -> None:
        self._words.set_attn_implementation(register(attention.text))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self._words.embed_tokens(ids)

    def embedding_rows(self) -> Tensor:
        return self._words.embed_tokens.weight

    def head_rows(self) -> Tensor:
        return self.model.lm_head.weight

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        eye = self.model.eye
        places = torch.from_numpy(patch_places(grids.tolist())).to(pixel_values.device)
        return eye(pixel_values.to(eye.out.weight.dtype), places)

    def prompt_positions(self, ids: Sequence[int], grids: Sequence[Grid]) -> Tensor:
        return torch.arange(len(ids))[None]

    def rotary(self, positions_ABS: Tensor, like: Tensor) -> Rotary:
        return self._words.rotary_emb(like, positions_ABS[0])

    def run_layer(
        self,
        layer: int,
        hidden_BSD: Tensor,
        mask_B1SN: Tensor | None,
        rotary: Rotary,
        cache: LayerCache,
        saliency: SaliencyRow | None = None,
    ) -> Tensor:
        return self._words.layers[layer](
            hidden_BSD, attention_mask=mask_B1SN, position_embeddings=rotary, use_cache=True, saliency=saliency,
            **{self._cache_name: cache},
        )  # fmt: skip

    def final_norm(self, hidden_BSD: Tensor) -> Tensor:
        return self._words.norm(hidden_BSD)

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden)

    def picture_sizes(self, grid: Grid) -> tuple[int, int]:
        return grid[0] * grid[1], grid[0] * grid[1]

    def token_raster(self, values_V: Tensor, grid: Grid) -> Tensor:
        return values_V.view(grid[0], grid[1])

    def unpatch(self, patches: Tensor, grid: Grid) -> Tensor:
        rows, columns = grid
        tiles = patches.view(rows, columns, self._side, self._side, 3)
        return tiles.permute(4, 0, 2, 1, 3).reshape(3, rows * self._side, columns * self._side)

    def patch(self, image: Tensor) -> Tensor:
        rows, columns = (side // self._side for side in image.shape[1:])
        tiles = image.view(3, rows, self._side, columns, self._side)
        return tiles.permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)

    def part_of(self, name: str) -> WeightPart:
        return part_by_piece(name, _PARTS)


PART = RowwiseBackbone
