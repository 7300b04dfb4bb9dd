"""What a language model is made of, as data: sizes, and how one layer is put together.

Place in the pipeline: a family's `WeightReader` (reader.py) reads them off the config; graph/layers.py builds layers
from them, packing.py their matrices.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lrkit.errors import ExportError

NormKind = Literal["rms", "layer"]
"""rms: root mean square, no bias; layer: mean and deviation, with a bias."""
Activation = Literal["silu", "gelu", "gelu_tanh"]
"""gelu_tanh is gelu's approximation."""
Biased = Literal["qkv", "out", "mlp"]
"""Matrices with a bias: queries, keys and values; what mixes heads; all of the feed-forward part."""


@dataclass(frozen=True)
class Norm:
    """A norm. Those of the hidden state are all of one kind."""

    kind: NormKind
    epsilon: float


@dataclass(frozen=True)
class LayerRecipe:
    """One layer; all layers of a model are alike. Attention is causal, over grouped heads."""

    norm: Norm
    biases: frozenset[Biased] = frozenset()
    """None in Llama, "qkv" in Qwen2."""
    norm_places: frozenset[Literal["before", "after"]] = frozenset({"before"})
    """Whether attention and the feed-forward part read a normed state, add a normed one, or both."""
    gated: bool = True
    """Whether the feed-forward part has a gate: act(x gate) * (x up), else act(x up)."""
    activation: Activation = "silu"
    """Of the feed-forward part."""
    rotary_pairs: Literal["halves", "neighbours"] = "halves"
    """Which two numbers of a head turn together: i and i + W / 2, or 2 i and 2 i + 1 of a head W wide."""
    head_norm: Norm | None = None
    """Over the width of each head, of queries and keys alike, before they turn: rms in Qwen3, layer in Chameleon. The
    reader's parts q_norm and k_norm are its weights."""


@dataclass(frozen=True)
class Dimensions:
    """Sizes of the language model."""

    width: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    head_width: int
    """Of a head; all together may be wider or narrower than the hidden state."""
    inner: int
    """Width of the feed-forward part."""
    vocabulary: int
    inverse_frequencies: tuple[float, ...]
    """Of the rotary embedding, head_width / 2 of them; 0 for pairs that never turn."""
    rotary_axes: tuple[int, ...]
    """Per frequency: the axis of positions that turns it in the prompt; all 0 where a position is one number."""
    recipe: LayerRecipe
    never_spoken: tuple[int, ...] = ()
    """Tokens whose logits the model's head closes, so that they are never said (`Backbone.head`)."""
    deep_layers: tuple[int, ...] = ()
    """As `Backbone.deep_layers`: layers behind which visual tokens add features of their own."""

    @property
    def row_width(self) -> int:
        """Of a visual token's row: its input embedding, and what it adds behind each deep layer."""
        return self.width * (1 + len(self.deep_layers))


def known(what: str, value: str, values: Collection[str]) -> None:
    """For readers: a config asks for something that programs may not know.

    Raises:
        ExportError: `value` is none of `values`.
    """
    if value not in values:
        raise ExportError(f"the backbone's {what} is {value!r}; a program knows {', '.join(sorted(values))} only")
