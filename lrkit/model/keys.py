"""Keys and values of earlier chunks. Training and most answers use growing ones. Those of fixed size always stand in
the same memory, so that a step can be recorded.

Place in the pipeline: state.py and routing.py hold them, decoder.py and routing.py extend them by each chunk.

Legend: B batch, S tokens of a chunk, N keys, H key heads, D head width.
"""

import inspect
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lrkit.model.saliency import visible_mask


class LayerCache(Protocol):
    """What an attention layer of transformers asks of a cache."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, /) -> tuple[Tensor, Tensor]:
        """Appends a chunk's keys and values (B, H, S, D) and gives all of that layer, (B, H, N, D)."""
        ...


def cache_argument(layer: nn.Module) -> str:
    """The name by which a layer of transformers takes its cache."""
    # transformers 5.24 calls it cache, and warns at every layer where it is called past_key_values.
    return "cache" if "cache" in inspect.signature(type(layer).forward).parameters else "past_key_values"


class Keys(Protocol):
    """Keys of earlier chunks, for layers that all saw the same chunks."""

    cache: Any
    """A `LayerCache`; transformers declares its own class."""

    def extend(self, valid_BS: Tensor) -> Tensor | None:
        """Before a chunk runs: notes which of its tokens are real. Gives where they may look, (B, 1, S, N) True where
        attention is allowed, or None for the plain causal mask."""
        ...


class GrowingKeys:
    """Joined again by every chunk: takes any length and wastes no memory."""

    def __init__(self, may_be_plain: bool = True) -> None:
        """`may_be_plain` lets None stand for a mask; to find out whether it may costs a wait for the device."""
        self.cache = DynamicCache()
        self.valid_BN: Tensor | None = None
        self._may_be_plain = may_be_plain

    def extend(self, valid_BS: Tensor) -> Tensor | None:
        first, num_new = self.valid_BN is None, valid_BS.shape[1]
        self.valid_BN = valid_BS if self.valid_BN is None else torch.cat([self.valid_BN, valid_BS], dim=1)
        # No mask where plain causal attention says the same: the fast kernel, and bit for bit what the backbone does.
        if self._may_be_plain and (first or num_new == 1) and bool(self.valid_BN.all()):
            return None
        return visible_mask(self.valid_BN, num_new)

    def fork(self) -> "GrowingKeys":
        """The same keys, to go on with another chunk; each is joined by its own, and shares what was there before."""
        made = GrowingKeys(self._may_be_plain)
        made.valid_BN = self.valid_BN
        made.cache.layers = [copy(layer) for layer in self.cache.layers]
        return made

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, N, D), after a chunk has run."""
        found: Any = self.cache.layers[layer]
        return found.keys, found.values


class StaticKeys:
    """Written into buffers of fixed size, at a place that is counted on the device: nothing here waits for it."""

    def __init__(self, layers: Iterable[int], like_BHND: Tensor, capacity: int) -> None:
        """`like_BHND` is some layer's keys, for batch, heads, width, number type and device."""
        batch, heads, _, width = like_BHND.shape
        device = like_BHND.device
        self.capacity = capacity
        self.cache = _StaticCache(
            {layer: tuple(like_BHND.new_zeros(batch, heads, capacity, width) for _ in range(2)) for layer in layers}
        )
        self._valid_BN = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self._length = torch.zeros((), dtype=torch.long, device=device)
        self._columns_N = torch.arange(capacity, device=device)

    def extend(self, valid_BS: Tensor) -> Tensor:
        column_S = self._length + self._columns_N[: valid_BS.shape[1]]
        self._length += valid_BS.shape[1]
        self._valid_BN.index_copy_(1, column_S, valid_BS)
        self.cache.column_S = column_S
        causal_SN = self._columns_N <= column_S[:, None]
        itself_SN = self._columns_N == column_S[:, None]
        return ((causal_SN & self._valid_BN[:, None]) | itself_SN)[:, None]

    def load(self, keys: GrowingKeys | None) -> None:
        """Holds what `keys` holds; None: nothing. Zeros behind it: a mask does not keep out what is no number."""
        self._valid_BN.zero_()
        self._length.zero_()
        for buffer in (buffer for pair in self.cache.buffers.values() for buffer in pair):
            buffer.zero_()
        if keys is None or keys.valid_BN is None:
            return
        count = keys.valid_BN.shape[1]
        self._valid_BN[:, :count] = keys.valid_BN
        self._length.fill_(count)
        for layer, buffers in self.cache.buffers.items():
            for buffer, values in zip(buffers, keys.of_layer(layer), strict=True):
                buffer[:, :, :count] = values


class _StaticCache:
    """A `LayerCache` over buffers; `column_S` says where the current chunk goes."""

    column_S: Tensor

    def __init__(self, buffers: dict[int, Sequence[Tensor]]) -> None:
        self.buffers = buffers

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.buffers[layer_idx]
        keys.index_copy_(2, self.column_S, key_states)
        values.index_copy_(2, self.column_S, value_states)
        return keys, values
