"""Watches one forward pass of a reasoner: the hidden state that enters each layer, chunk by chunk, and what each token
is.

    with observed(reasoner) as watched:      reasoner(batch) -> watched.chunks -> gradients, norms, read-outs

The model's code is not changed: while it is watched, its backbone is one that notes what it is handed. A layer's routed
passes are not noted; what a layer is handed is already routed and has what deeper layers add.

Legend: B batch, S tokens of a chunk (fewer behind a pruned layer), D width, L layers.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lrkit.data.collate import TrainBatch
from lrkit.model.keys import LayerCache
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.routing import Rotary
from lrkit.model.saliency import SaliencyRow

KINDS = ("visual", "text", "replayed", "latent", "spoken")
"""Of tokens: of the prompt, visual and all others; of latent steps, visual ones shown again and latents; of speech."""
VISUAL, TEXT, REPLAYED, LATENT, SPOKEN = range(5)


@dataclass
class Chunk:
    """Tokens that went through the layers together."""

    hidden: list[Tensor] = field(default_factory=list[Tensor])
    """What enters layer 0 to L - 1, then the final norm: (1, S, D) each."""
    turns: list[Tensor] = field(default_factory=list[Tensor])
    """The cosines of their rotary positions, by which a token that survives pruning is known."""
    kinds: list[Tensor] = field(default_factory=list[Tensor])
    """Beside each of `hidden`: (S,) int64, numbers of KINDS."""


class ObservedBackbone:
    """A backbone that notes the hidden states of main passes; all else is the backbone's own."""

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self._next = 0
        self.chunks: list[Chunk] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def run_layer(
        self,
        layer: int,
        hidden_BSD: Tensor,
        mask_B1SN: Tensor | None,
        rotary: Rotary,
        cache: LayerCache,
        saliency: SaliencyRow | None = None,
    ) -> Tensor:
        """As `Backbone.run_layer`."""
        if layer == self._next:  # a routed pass comes behind the main one, through the same layer
            if layer == 0:
                self.chunks.append(Chunk())
            hidden_BSD = self._noted(hidden_BSD)
            self.chunks[-1].turns.append(rotary[0].detach())
            self._next += 1
        return self._backbone.run_layer(layer, hidden_BSD, mask_B1SN, rotary, cache, saliency)

    def final_norm(self, hidden_BSD: Tensor) -> Tensor:
        """As `Backbone.final_norm`."""
        if self._next:
            hidden_BSD = self._noted(hidden_BSD)
            self.chunks[-1].turns.append(self.chunks[-1].turns[-1])
            self._next = 0
        return self._backbone.final_norm(hidden_BSD)

    def _noted(self, hidden_BSD: Tensor) -> Tensor:
        # Embeddings of a frozen backbone have no gradient; they become a place where one ends.
        if not hidden_BSD.requires_grad and torch.is_grad_enabled():
            hidden_BSD = hidden_BSD.detach().requires_grad_()
        self.chunks[-1].hidden.append(hidden_BSD)
        return hidden_BSD


@contextmanager
def observed(reasoner: LatentReasoner) -> Generator[ObservedBackbone]:
    """While it is open, the reasoner's passes are noted; behind it, the reasoner is as before."""
    own = reasoner.backbone
    watched = ObservedBackbone(own)
    reasoner.backbone = watched  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield watched
    finally:
        reasoner.backbone = own


def name_tokens(chunks: list[Chunk], batch: TrainBatch, reasoner: LatentReasoner) -> None:
    """Says of each token of a sample's pass what it is. `batch` holds that one sample."""
    prompt, *later = chunks
    ids_S = batch.input_ids[0]
    visual_S = (ids_S == reasoner.backbone.image_token_id) & batch.prompt_mask[0]
    # Latents stand behind what is replayed before them: one in each chunk, or all.
    at_once = int(batch.num_latents[0]) if reasoner.settings.think.latents == "parallel" else 1
    _fill(prompt, torch.where(visual_S, VISUAL, TEXT))
    spoken = batch.speech_ids.shape[1] > 1
    for number, chunk in enumerate(later):
        size = chunk.hidden[0].shape[1]
        if spoken and number == len(later) - 1:
            kinds = torch.full((size,), SPOKEN)
        else:
            kinds = torch.full((size,), REPLAYED)
            kinds[-at_once:] = LATENT
        _fill(chunk, kinds.to(ids_S.device))


def _fill(chunk: Chunk, kinds_S: Tensor) -> None:
    """Behind a layer that prunes fewer tokens are left: each has the rotary position that it had."""
    for hidden, turn in zip(chunk.hidden, chunk.turns, strict=True):
        if hidden.shape[1] == len(kinds_S):
            chunk.kinds.append(kinds_S)
            continue
        first, left = _rows(chunk.turns[0]), _rows(turn)
        same = (left[:, None] == first[None]).all(-1)
        chunk.kinds.append(kinds_S[same.int().argmax(1)])


def _rows(turn: Tensor) -> Tensor:
    """(S, anything): positions of a batch of one, whatever axes stand before them."""
    if turn.dim() == 4:  # (axes, B, S, width)
        return turn[:, 0].movedim(1, 0).flatten(1)
    return turn[0]
