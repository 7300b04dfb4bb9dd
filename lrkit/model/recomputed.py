"""Gradient checkpointing: a layer keeps its input alone, and runs once more when the backward pass comes to it.

Place in the pipeline: train/run.py asks for it (recipe `gradient_checkpointing`) -> `Backbone.run_layer` of one model.

A layer of a reasoner has effects beside its result: it appends keys to a cache, and adds to a saliency row. What runs
twice must have none. So the layer gets a cache and a row of its own each time, and only the first time they are
entered into those of the sequence. Keys of earlier chunks stay in memory, because later chunks read them.

Legend: B batch, H key heads, S tokens of the chunk, N keys, D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lrkit.model.backbone import Backbone
from lrkit.model.keys import LayerCache
from lrkit.model.routing import Rotary
from lrkit.model.saliency import SaliencyRow


def recompute_layers(backbone: Backbone) -> None:
    """From now on the layers of the language model keep their inputs alone, wherever a gradient is taken."""
    setattr(backbone, "run_layer", _Recomputed(backbone.run_layer))  # noqa: B010


class _Recomputed:
    """A `run_layer` that keeps its input alone."""

    def __init__(self, run_layer: Any) -> None:
        self._run_layer = run_layer

    def __call__(
        self,
        layer: int,
        hidden_BSD: Tensor,
        mask_B1SN: Tensor | None,
        rotary: Rotary,
        cache: Any,
        saliency: SaliencyRow | None = None,
    ) -> Tensor:
        """As `Backbone.run_layer`."""
        if not torch.is_grad_enabled():
            return self._run_layer(layer, hidden_BSD, mask_B1SN, rotary, cache, saliency)

        def run(hidden_BSD: Tensor, *earlier: Tensor) -> tuple[Tensor, ...]:
            own = _OneLayer(earlier)
            row = None if saliency is None else SaliencyRow(saliency.last_B)
            made = self._run_layer(layer, hidden_BSD, mask_B1SN, rotary, own, row)
            return made, *own.keys, *(() if row is None or row.total_BN is None else (row.total_BN,))

        made, keys, values, *row = checkpoint(run, hidden_BSD, *_earlier(cache, layer), use_reentrant=False)
        _enter(cache, layer, keys, values)
        if saliency is not None and row:
            saliency.add_row(row[0])
        return made


class _OneLayer:
    """A `LayerCache` of one layer, whose keys of earlier chunks stay as they are."""

    def __init__(self, earlier: tuple[Tensor, ...]) -> None:
        self.keys = earlier
        """Keys and values, (B, H, N, D); none before the first chunk."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.keys or (key_states[:, :, :0], value_states[:, :, :0])
        made = torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)
        self.keys = made
        return made


def _earlier(cache: LayerCache, layer: int) -> tuple[Tensor, ...]:
    """Keys and values (B, H, N, D) of a growing cache; none before its first chunk."""
    layers: Any = getattr(cache, "layers", [])
    if layer >= len(layers) or not layers[layer].is_initialized:
        return ()
    return layers[layer].keys, layers[layer].values


def _enter(cache: Any, layer: int, keys: Tensor, values: Tensor) -> None:
    """The same tensors that the layer has read: joined once more, gradients would be summed in another order."""
    if layer >= len(cache.layers) or not cache.layers[layer].is_initialized:
        cache.update(keys, values, layer)  # makes the place
    cache.layers[layer].keys, cache.layers[layer].values = keys, values
