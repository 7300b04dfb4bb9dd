"""The steps of an answer: think, speak, and what the model wants next. Here they run one by one; recorded.py records
them.

Place in the pipeline: generate.py decides which step comes next and drives either.

Legend: B batch.
"""

from typing import Protocol

import torch
from torch import Tensor

from lrkit.model.reasoner import LatentReasoner
from lrkit.model.state import Sequences

NO_WORD = -2
"""Beside -1, which stands for "no end token"."""


class Steps(Protocol):
    """What generate.py drives. Results are read before the next step."""

    def think(self, active_B: Tensor) -> None:
        """One latent step for the samples where `active_B` is True."""
        ...

    def think_at_once(self, count_B: Tensor) -> None:
        """So many latent steps of each sample, in the passes of `think.latents: parallel`."""
        ...

    def speak(self, token_B: Tensor, going_B: Tensor) -> None:
        """Appends one spoken token each, for the samples where `going_B` is True."""
        ...

    def wants_to_think(self) -> Tensor:
        """(B,) True where the model prefers `<|latent|>` to all words."""
        ...

    def next_token(self) -> Tensor:
        """(B,) its preferred word; `NO_WORD` where its numbers have become NaN or infinite."""
        ...


class PlainSteps:
    """Steps on a state whose keys grow."""

    def __init__(self, reasoner: LatentReasoner, state: Sequences) -> None:
        self._reasoner = reasoner
        self._state = state
        self._logits_BW: Tensor | None = None

    def think(self, active_B: Tensor) -> None:
        self._reasoner.think(self._state, active_B)
        self._logits_BW = None

    def think_at_once(self, count_B: Tensor) -> None:
        self._reasoner.think_at_once(self._state, count_B)
        self._logits_BW = None

    def speak(self, token_B: Tensor, going_B: Tensor) -> None:
        self._reasoner.speak(self._state, token_B[:, None], going_B[:, None])
        self._logits_BW = None

    def wants_to_think(self) -> Tensor:
        return wants_to_think(self._reasoner, self._logits())

    def next_token(self) -> Tensor:
        return next_token(self._reasoner, self._logits())

    def _logits(self) -> Tensor:
        if self._logits_BW is None:
            self._logits_BW = self._reasoner.logits(self._state.last_hidden_BD)
        return self._logits_BW


def wants_to_think(reasoner: LatentReasoner, logits_BW: Tensor) -> Tensor:
    """See `Steps`."""
    return logits_BW.argmax(-1) == reasoner.latent.token_id


def next_token(reasoner: LatentReasoner, logits_BW: Tensor) -> Tensor:
    """See `Steps`."""
    words_BW = logits_BW.clone()
    words_BW[:, reasoner.latent.token_id] = torch.finfo(logits_BW.dtype).min
    # The greatest of numbers of which one is NaN is NaN, and so cannot pass for a word.
    best_B, word_B = words_BW.max(-1)
    return torch.where(best_B.isfinite(), word_B, NO_WORD)
