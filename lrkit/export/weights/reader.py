"""What an export asks of a family to read its weights: a module `weights` in the family's folder.

Place in the pipeline: families/table.py -> `reader_of` -> source.py, for a model in memory and for files alike.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from torch import nn

from lrkit.errors import ExportError, UnknownNameError
from lrkit.export.weights.layer_recipe import Dimensions
from lrkit.families.table import load_part

Read = Callable[[str], np.ndarray]
"""A weight of the backbone by the name it has in transformers, adapters merged: a float32 array that nobody else
holds."""


LLAMA_PARTS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj", "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm", "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
}  # fmt: skip
"""Part of a layer -> its module inside the layer, as Llama named them and many families after it."""


class WeightReader(Protocol):
    """How the language model of one family lies in its weights. Names are those of transformers."""

    embedding: str
    """The token embedding."""
    head: str
    """The language head, where it is a matrix of its own."""
    tower: str
    """What stands before the names of `new_tower`'s weights."""

    def new_tower(self, config: Any) -> nn.Module:
        """The vision tower, with all that makes visual tokens of its states; its weights are yet to come."""
        ...

    def dimensions(self, config: Any) -> Dimensions:
        """What the model is made of, from transformers' config.

        Raises:
            ExportError: the backbone does something that a program does not know.
        """
        ...

    def final_norm(self, read: Read, kind: str) -> np.ndarray:
        """The norm after the last layer: its `weight` or `bias`."""
        ...

    def layer(self, read: Read, number: int, part: str, kind: str) -> np.ndarray:
        """The `weight`, (out, in) of matrices, or `bias` of one part of a layer: q, k, v (of attention, heads one after
        the other), out, gate, up, down; norm1 and norm2 in front of attention and of the feed-forward part, after1 and
        after2 behind them; q_norm and k_norm, (head width,) for all heads or (heads, head width). Only what
        `dimensions` says is there is asked for."""
        ...


def reader_of(family: str) -> WeightReader:
    """The reader of a family. Raises as `export_part`."""
    return export_part(family, "weights", WeightReader)


def export_part(family: str, part: str, offers: type) -> Any:
    """A part of a family that only an export needs: weights or tower.

    Raises:
        ExportError: the family has none.
    """
    try:
        return load_part(family, part, offers)
    except UnknownNameError as error:
        raise ExportError(f"no program can be built for this backbone: {error}") from error
