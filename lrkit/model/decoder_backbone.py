"""The larger part of a `Backbone` (backbone.py), for families whose language model is a decoder of transformers: its
own layers, rotary positions, norm and head, wrapped and not copied. What is left to the family are pictures and sizes.

Legend: as in backbone.py.
"""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lrkit.contract.attention import Attention
from lrkit.model.backbone import AttentionSizes, WeightPart, part_by_piece
from lrkit.model.keys import LayerCache, cache_argument
from lrkit.model.routing import Rotary
from lrkit.model.saliency import SaliencyRow, register


class DecoderBackbone:
    """A model of transformers around a decoder with the attribute names of Llama's."""

    model_class: ClassVar[Any]
    """transformers' class of the whole model."""
    config_class: ClassVar[Any]
    """transformers' class of its config."""
    parts: ClassVar[Mapping[str, WeightPart]]
    """For `part_of`: piece of a weight's name -> where the weight belongs."""
    decoder_name: ClassVar[str] = "model.language_model"
    """Where the decoder lies in the model."""
    decoder_config: ClassVar[str] = "text_config"
    """The sub-config of the decoder's attention; "" where it is the config itself."""
    tower_config: ClassVar[str] = "vision_config"
    """The sub-config of the tower's attention."""
    lora_targets = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    axes: int = 1
    deep_layers: tuple[int, ...] = ()

    def __init__(self, model: Any) -> None:
        self.model: Any = model
        self.use_attention(Attention())
        self.decoder: Any = model.get_submodule(self.decoder_name)
        self._cache_name = cache_argument(self.decoder.layers[0])
        self.hidden_size: int = self.decoder.config.hidden_size
        self.num_layers: int = self.decoder.config.num_hidden_layers
        self.image_token_id: int = model.config.image_token_id
        self.tied_embeddings: bool = model.lm_head.weight is self.decoder.embed_tokens.weight

    def attention_sizes(
        self, vision_width: int, vision_depth: int, vision_windows: tuple[tuple[int, int], ...] = ()
    ) -> AttentionSizes:
        """For `Backbone.attention`, with what `AttentionSizes` says of the tower."""
        attention = self.decoder.layers[0].self_attn
        query, key = attention.q_proj.out_features, attention.k_proj.out_features
        return AttentionSizes(query, key, vision_width, vision_depth, vision_windows)

    @classmethod
    def from_pretrained(
        cls, path: str, dtype: torch.dtype | None = None, config: Mapping[str, Any] | None = None
    ) -> Self:
        """Loads a local folder; `dtype` None keeps the type on disk, `config` None takes the folder's config.json as it
        is. Nothing is downloaded, and no code of the folder is run."""
        model = cls.model_class.from_pretrained(
            path,
            config=None if config is None else cls.config_from(config),
            dtype=dtype or "auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
        return cls(model)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> Self:
        """The backbone of these weights, by their names in transformers."""
        model = cls.model_class.from_pretrained(
            None, config=cls.config_from(config), state_dict=dict(weights), dtype=dtype, local_files_only=True
        )
        return cls(model)

    @classmethod
    def config_from(cls, values: Mapping[str, Any]) -> Any:
        """transformers' config object; `values` stay as they are."""
        return cls.config_class(**copy.deepcopy(dict(values)))

    def use_attention(self, attention: Attention) -> None:
        """Only the language model reads saliency; the tower has transformers' own functions."""
        self.model.set_attn_implementation(
            {self.decoder_config: register(attention.text), self.tower_config: attention.vision}
        )

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(B, S) int64 -> (B, S, D)."""
        return self.decoder.embed_tokens(ids)

    def embedding_rows(self) -> Tensor:
        """(vocabulary, D)."""
        return self.decoder.embed_tokens.weight

    def head_rows(self) -> Tensor:
        """(vocabulary, D)."""
        return self.model.lm_head.weight

    def rotary(self, positions_ABS: Tensor, like: Tensor) -> Rotary:
        """cos and sin of positions; a decoder whose tokens have one position each gets them without the axis."""
        return self.decoder.rotary_emb(like, positions_ABS if self.axes > 1 else positions_ABS[0])

    def run_layer(
        self,
        layer: int,
        hidden_BSD: Tensor,
        mask_B1SN: Tensor | None,
        rotary: Rotary,
        cache: LayerCache,
        saliency: SaliencyRow | None = None,
    ) -> Tensor:
        """One transformer layer over new tokens."""
        return self.decoder.layers[layer](
            hidden_BSD,
            attention_mask=mask_B1SN,
            position_embeddings=rotary,
            use_cache=True,
            saliency=saliency,
            **{self._cache_name: cache},
        )

    def final_norm(self, hidden_BSD: Tensor) -> Tensor:
        """The norm after the last layer."""
        return self.decoder.norm(hidden_BSD)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits, (..., D) -> (..., vocabulary)."""
        return self.model.lm_head(hidden)

    def part_of(self, name: str) -> WeightPart:
        """By `parts`."""
        return part_by_piece(name, self.parts)
