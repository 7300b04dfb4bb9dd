"""Words that a model prefers by less than its numbers are exact: which of them is spoken says nothing of a program.

Place in the pipeline: check.py notes the best words of each of torch's spoken steps (`best_words`), and where a program
first says another word, how far torch holds the two apart (`margin`). check_verdict.py counts an answer that parts at
less than the program's numbers are off as one that agrees. Random weights part so on one CPU and not on the next.

Legend: B batch, N best words, W vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KEPT = 8
"""Best words of a step that are noted. What is below them is not near."""


@dataclass(frozen=True)
class BestWords:
    """What torch would say next, of one sample."""

    ids: list[int]
    logits: list[float]
    """From the best down."""

    def apart(self, one: Sequence[int], other: Sequence[int]) -> float:
        """Between the best of either's ids, in units of the largest of these logits (at least 1); infinite where they
        are not all known. An answer's end has several ids."""
        scores = [max((self._score(id) for id in ids), default=-np.inf) for ids in (one, other)]
        if not all(np.isfinite(scores)):
            return float("inf")
        return abs(scores[0] - scores[1]) / max(1.0, *(abs(logit) for logit in self.logits))

    def _score(self, id: int) -> float:
        return self.logits[self.ids.index(id)] if id in self.ids else -np.inf


def best_words(logits_BW: Tensor, latent_id: int) -> list[BestWords]:
    """Of each sample, `<|latent|>` left out, which no answer says."""
    words_BW = logits_BW.detach().float().clone()
    words_BW[:, latent_id] = torch.finfo(torch.float32).min
    logits_BN, ids_BN = words_BW.topk(min(KEPT, words_BW.shape[1]))
    pairs = zip(ids_BN.tolist(), logits_BN.tolist(), strict=True)
    return [BestWords(ids, logits) for ids, logits in pairs]


def margin(
    best: Sequence[BestWords], torch_said: Sequence[int], one: Sequence[int], other: Sequence[int], ends: Sequence[int]
) -> float:
    """How far torch holds apart the first two words in which the answers `one` and `other` differ (`BestWords.apart`);
    0 where none does, infinite where torch said something else before them.

    `best` has a step for each of `torch_said`, and one more where that ended by itself. An answer that stops says one
    of `ends`.
    """
    if list(one) == list(other):
        return 0.0
    pairs = zip(one, other, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    if place >= len(best) or list(torch_said[:place]) != list(one[:place]):
        return float("inf")
    words = [[answer[place]] if place < len(answer) else list(ends) for answer in (one, other)]
    return best[place].apart(*words)
