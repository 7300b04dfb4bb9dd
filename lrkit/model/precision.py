"""Number types: the one rule for all that the method adds to a backbone, in training and in use.

1. **The stream** (input embeddings, hidden states, replayed tokens, latents, refined tokens, keys) has the type of the
   backbone's embedding matrix. What the method adds to it is cast to that type once, where it joins.
2. **The method's own weights** (routers, step encodings, F_SR, rows and scale of `<|latent|>`) are float32: where they
   train, on disk and in use, over a backbone of any type (`Float32Module`). LoRA trains in float32 too; in use it is
   added to the backbone's weights in float32, and the sum is rounded once.
3. **What the method computes** (router scores, gates, refinements, saliency, weights of the replay, lengths of latents,
   F_SR and its loss, the logit of `<|latent|>`, cross entropy) is computed in float32, with autocast off: these numbers
   decide between tokens, or are squared and summed (`wide`, `exact`).
4. **What the backbone computes** (attention with its scores, feed-forward, norms, head, tower) has its own type, or
   autocast's. Weights that train are float32; autocast computes with copies of them in bfloat16.

A model is used in the type that its backbone had in training (reasoner.json: `provenance.numbers`), unless another is
asked for. float64 counts as float32 throughout: tests use it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn


def wide(values: Tensor) -> Tensor:
    """Casts to float32 what has a smaller type."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def exact(like: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast is off on the device of `like`."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class Float32Module(nn.Module):
    """A module whose weights and buffers are never in less than float32: not by `.to(torch.bfloat16)` of the whole
    model either."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep(values: Tensor) -> Tensor:
            made = fn(values)
            # From the values themselves: through a narrower type they would come back rounded.
            return made if made.dtype == wide(made).dtype else wide(values).to(made.device)

        return super()._apply(keep, recurse)
