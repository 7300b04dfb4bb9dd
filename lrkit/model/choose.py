"""Answers with one of several choices, in torch: speaks up to the answer's marker, then scores each choice there.

Place in the pipeline: generate.py thinks, then calls `speak_choice` instead of speaking freely; lrkit/contract/
choosing.py walks the trie of the choices.

Where no marker is said, the choices stand where an answer would: after latents at the beginning of the speech, since
nothing but the answer need be said there; after spoken steps behind a marker that is put in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lrkit.contract.choosing import Candidates, Scored, log_softmax, score
from lrkit.contract.generated import GenerationLimits, Mode
from lrkit.errors import UserError
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.state import Sequences
from lrkit.model.steps import NO_WORD, PlainSteps


@dataclass(frozen=True)
class SpokenChoice:
    """Speech that ends with a choice."""

    before: list[int]
    """Tokens in front of the choice."""
    chosen: list[int]
    """Tokens of the most probable one."""
    passes: int
    """Forward passes, those of the scoring included."""
    scored: Scored


def speak_choice(
    reasoner: LatentReasoner,
    state: Sequences,
    mode: Mode,
    limits: GenerationLimits,
    candidates: Candidates,
    between_steps: Callable[[], None],
    failed: Callable[[LatentReasoner], UserError],
) -> SpokenChoice:
    """For one sequence that has thought. `failed` makes the error of numbers that became NaN.

    Raises:
        DataError: a choice holds a token that the model has no row for.
        UserError: the model's numbers became NaN or infinite.
    """
    start = state.fork()
    spoken, passes, marked = [], 0, mode == "direct"
    if not marked:
        spoken, marked = _speak_to_marker(reasoner, state, limits, candidates, between_steps, failed)
        passes = len(spoken)
    if not marked and mode == "latent":
        spoken, state = [], start
    elif not marked:
        put_in = [*(candidates.separator if spoken else ()), *candidates.marker]
        _feed(reasoner, state, put_in)
        spoken, passes = spoken + put_in, passes + 1
    scored = score(candidates, _TorchPlace(reasoner, state, between_steps, failed))
    best = scored.best(candidates.choices.per_token)
    return SpokenChoice(spoken, list(candidates.ids[best]), passes + scored.passes, scored)


def _speak_to_marker(
    reasoner: LatentReasoner,
    state: Sequences,
    limits: GenerationLimits,
    candidates: Candidates,
    between_steps: Callable[[], None],
    failed: Callable[[LatentReasoner], UserError],
) -> tuple[list[int], bool]:
    """Greedy tokens, each fed back, up to and with the marker; whether it was said."""
    steps, marker = PlainSteps(reasoner, state), list(candidates.marker)
    spoken: list[int] = []
    for _ in range(limits.max_new_tokens):
        between_steps()
        token_B = steps.next_token()
        token = int(token_B)
        if token == NO_WORD:
            raise failed(reasoner)
        if token == limits.eos_id or token in limits.more_ends:
            break
        spoken.append(token)
        steps.speak(token_B, torch.ones_like(token_B, dtype=torch.bool))
        if spoken[-len(marker) :] == marker:
            return spoken, True
    return spoken, False


def _feed(reasoner: LatentReasoner, state: Sequences, tokens: list[int]) -> None:
    ids_BS = torch.tensor([tokens], device=state.next_position_B.device)
    reasoner.speak(state, ids_BS, torch.ones_like(ids_BS, dtype=torch.bool))


@dataclass(frozen=True)
class _TorchPlace:
    """A `Place` behind a state, which stays as it is."""

    reasoner: LatentReasoner
    state: Sequences
    between_steps: Callable[[], None]
    failed: Callable[[LatentReasoner], UserError]

    def log_probabilities(self) -> np.ndarray:
        logits_BW = self.reasoner.logits(self.state.last_hidden_BD).float().cpu()
        if not bool(logits_BW.max().isfinite()):  # the greatest of numbers of which one is NaN is NaN
            raise self.failed(self.reasoner)
        return log_softmax(logits_BW[0].numpy(), self.reasoner.latent.token_id)

    def after(self, token: int) -> "_TorchPlace":
        self.between_steps()
        state = self.state.fork()
        _feed(self.reasoner, state, [token])
        return _TorchPlace(self.reasoner, state, self.between_steps, self.failed)
