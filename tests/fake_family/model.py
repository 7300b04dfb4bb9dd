"""The fake family's model: Llama's layers for words, a small tower of its own, a head of its own."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, LlamaConfig, LlamaModel, PretrainedConfig, PreTrainedModel

from tests.fake_family.geometry import MAX_SIDE


class RowwiseConfig(PretrainedConfig):
    """`text` are a LlamaConfig's values; `eye` has width, depth and patch_size."""

    model_type = "rowwise"

    def __init__(
        self,
        text: dict[str, Any] | None = None,
        eye: dict[str, Any] | None = None,
        image_token_id: int = 0,
        **rest: Any,
    ) -> None:
        given: dict[str, Any] = {**rest, "tie_word_embeddings": False}
        super().__init__(**given)
        self.text, self.eye, self.image_token_id = text or {}, {"most": MAX_SIDE, **(eye or {})}, image_token_id


class Block(nn.Module):
    """Adds what the patches around say, then what each patch makes of itself; no norm, no attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.around = nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden_NE: Tensor, share_NN: Tensor) -> Tensor:
        hidden_NE = hidden_NE + self.around(share_NN @ hidden_NE)
        return hidden_NE + self.outer(functional.gelu(self.inner(hidden_NE)))


class Eye(nn.Module):
    """The tower: a token per patch."""

    def __init__(self, width: int, depth: int, patch_size: int, most: int, out: int) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * patch_size**2, width)
        self.row, self.column = nn.Embedding(most, width), nn.Embedding(most, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.out = nn.Linear(width, out)

    def forward(self, pixels_NC: Tensor, places_N3: Tensor) -> Tensor:
        """Values of `Geometry.pixel_values` and places of `patch_places` -> (N, D)."""
        picture_N, row_N, column_N = places_N3.unbind(1)
        same_NN = (picture_N[:, None] == picture_N[None]).to(pixels_NC.dtype)
        share_NN = same_NN / same_NN.sum(1, keepdim=True)
        hidden_NE = self.patch(pixels_NC) + self.row(row_N) + self.column(column_N)
        for block in self.blocks:
            hidden_NE = block(hidden_NE, share_NN)
        return self.out(hidden_NE)


class RowwiseModel(PreTrainedModel, GenerationMixin):
    """What a checkpoint of the family holds. peft wants a model that could generate by itself."""

    config_class = RowwiseConfig
    config: Any

    def __init__(self, config: RowwiseConfig) -> None:
        super().__init__(config)
        text = LlamaConfig(**config.text)
        self.words = LlamaModel(text)
        self.eye = Eye(**config.eye, out=text.hidden_size)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    @torch.no_grad()
    def next_logits(self, ids: Tensor, pixels_NC: Tensor, places_N3: Tensor) -> Tensor:
        """(1, P) ids of one prompt -> (1, W) of the token behind it, as the family computes without lrkit."""
        embeds = self.words.embed_tokens(ids)
        embeds = embeds.masked_scatter((ids == self.config.image_token_id)[..., None], self.eye(pixels_NC, places_N3))
        return self.lm_head(self.words(inputs_embeds=embeds).last_hidden_state[:, -1])
