"""The fake family's model: Llama's layers for words, a small tower of its own, a head of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GenerationMixin,
    LlamaConfig,
    LlamaModel,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)

from tests.fake_family.geometry import MAX_SIDE


class RowwiseConfig(PretrainedConfig):
    """`text` are a LlamaConfig's values, or a Qwen3Config's where `head_dim` is among them: queries and keys have norms
    then. `eye` has width, depth and patch_size, and may have `deep`: blocks whose output image tokens add behind the
    first layers, one a layer."""

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


def text_config(values: Mapping[str, Any]) -> Any:
    """transformers' config of the decoder."""
    return Qwen3Config(**values) if "head_dim" in values else LlamaConfig(**values)


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

    def __init__(self, width: int, depth: int, patch_size: int, most: int, out: int, deep: Sequence[int] = ()) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * patch_size**2, width)
        self.row, self.column = nn.Embedding(most, width), nn.Embedding(most, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.out = nn.Linear(width, out)
        self.taken = tuple(deep)
        self.deep = nn.ModuleList(nn.Linear(width, out) for _ in deep)

    def forward(self, pixels_NC: Tensor, places_N3: Tensor) -> Tensor:
        """Values of `Geometry.pixel_values` and places of `patch_places` -> rows (N, D (1 + deep))."""
        picture_N, row_N, column_N = places_N3.unbind(1)
        same_NN = (picture_N[:, None] == picture_N[None]).to(pixels_NC.dtype)
        share_NN = same_NN / same_NN.sum(1, keepdim=True)
        hidden_NE = self.patch(pixels_NC) + self.row(row_N) + self.column(column_N)
        states = [hidden_NE := block(hidden_NE, share_NN) for block in self.blocks]
        deep = [layer(states[block]) for block, layer in zip(self.taken, self.deep, strict=True)]
        return torch.cat([self.out(hidden_NE), *deep], dim=1)


class RowwiseModel(PreTrainedModel, GenerationMixin):
    """What a checkpoint of the family holds. peft wants a model that could generate by itself."""

    config_class = RowwiseConfig
    config: Any

    def __init__(self, config: RowwiseConfig) -> None:
        super().__init__(config)
        text = text_config(config.text)
        self.words = Qwen3Model(text) if isinstance(text, Qwen3Config) else LlamaModel(text)
        self.eye = Eye(**config.eye, out=text.hidden_size)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    @torch.no_grad()
    def next_logits(self, ids: Tensor, pixels_NC: Tensor, places_N3: Tensor) -> Tensor:
        """(1, P) ids of one prompt -> (1, W) of the token behind it, as the family computes without lrkit."""
        is_image = (ids == self.config.image_token_id)[..., None]
        tokens, *deep = self.eye(pixels_NC, places_N3).chunk(1 + len(self.eye.deep), dim=1)
        hooks = [self.words.layers[i].register_forward_hook(_adds(own, is_image)) for i, own in enumerate(deep)]
        embeds = self.words.embed_tokens(ids).masked_scatter(is_image, tokens)
        states = self.words(inputs_embeds=embeds).last_hidden_state
        for hook in hooks:
            hook.remove()
        return self.lm_head(states[:, -1])


def _adds(features: Tensor, is_image: Tensor) -> Any:
    """A hook that adds a row each to the image tokens of a layer's output."""
    return lambda layer, given, out: out.masked_scatter(is_image, out[is_image[..., 0]] + features)
