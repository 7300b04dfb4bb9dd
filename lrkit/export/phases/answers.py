"""Torch's answers with the hidden states behind them, by phase, and what it makes of words that another model said.

Place in the pipeline: comparing.py compares what a reasoner in floats and one with rounded weights give here.

The words of speech are given (`forced`), so that both models are compared at the same places; without, they are the
model's own. The model thinks by itself in either case: it stops, replays and routes as it likes.

Legend: B batch, P prompt tokens, S spoken tokens, T latent steps, L layers, D width, W vocabulary.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrkit.contract.bundle.manifest import Limits, Role
from lrkit.contract.generated import Generated, GenerationLimits, Mode
from lrkit.model.generate import generate
from lrkit.model.keys import GrowingKeys
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.state import Sequences
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts, pad_rows


@dataclass
class Answered:
    """One answer."""

    said: Generated
    """What it answers by itself."""
    words: list[int]
    """Those that its speech was read with, the end token last where the answer ended."""
    states: dict[str, np.ndarray]
    """Phase -> hidden states behind the final norm: prompt.last (D,), prompt.tokens (P, D), latent.1 ... (D,), speech
    (S, D): what each of the words is predicted from."""
    layers: dict[str, np.ndarray]
    """Phase -> (L, D): of its last token, behind each layer; empty where nobody asked."""
    lost: list[float]
    """Negative log likelihood of each of the words."""


@torch.inference_mode()
def answers(
    reasoner: LatentReasoner, processor: Processor, prompts: Sequence[EncodedPrompt], role: Role, limits: Limits,
    forced: Sequence[Sequence[int]] | None = None, layers: bool = False,
) -> list[Answered]:  # fmt: skip
    """The answers to a batch of prompts; `layers` notes what is behind each layer too, where nothing is pruned.

    Raises:
        UserError: the model's numbers become NaN or infinite.
    """
    most = min(reasoner.settings.think.max_latent_steps, limits.max_latent_steps)
    bounds = GenerationLimits(processor.eos_id, limits.max_new_tokens, most, more_ends=processor.end_ids[1:])
    mode: Mode = role
    batch = collate_prompts([processor.asked_in(prompt, role) for prompt in prompts], processor.pad_id)
    with _noting(reasoner, layers and not reasoner.settings.prune.active) as noted:
        watched = _Watched(reasoner, noted)
        said = generate(watched, batch, mode, bounds)  # pyright: ignore[reportArgumentType]
        words = [list(row) for row in forced] if forced is not None else [_own(one, processor) for one in said]
        spoken = watched.reads(words, processor.pad_id)
    return [watched.answered(row, one, words[row], spoken) for row, one in enumerate(said)]


def _own(said: Generated, processor: Processor) -> list[int]:
    return [*said.token_ids, *([processor.eos_id] if said.finished else [])]


class _Noted:
    """A backbone that notes what comes out of its layers and its final norm, chunk by chunk; routed passes are not
    noted."""

    def __init__(self, backbone: Any, layers: bool) -> None:
        self._backbone, self._wanted = backbone, layers
        self._into: list[Tensor] = []
        self.normed: list[Tensor] = []
        """Of each chunk (B, S, D)."""
        self.behind: list[list[Tensor]] = []
        """Of each chunk, behind layer 0 to L - 1, (B, S, D)."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def run_layer(self, layer: int, hidden_BSD: Tensor, *rest: Any) -> Tensor:
        """As `Backbone.run_layer`."""
        if self._wanted and layer == len(self._into):  # a routed pass goes through a layer that is noted already
            self._into.append(hidden_BSD)
        return self._backbone.run_layer(layer, hidden_BSD, *rest)

    def final_norm(self, hidden_BSD: Tensor) -> Tensor:
        """As `Backbone.final_norm`."""
        if self._wanted:
            self.behind.append([*self._into[1:], hidden_BSD])
            self._into = []
        normed = self._backbone.final_norm(hidden_BSD)
        self.normed.append(normed)
        return normed


@contextmanager
def _noting(reasoner: LatentReasoner, layers: bool) -> Generator[_Noted]:
    """While it is open; behind it, the reasoner is as before."""
    own = reasoner.backbone
    noted = _Noted(own, layers)
    reasoner.backbone = noted  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield noted
    finally:
        reasoner.backbone = own


@dataclass
class _Spoken:
    """Words that were read behind the thinking."""

    hidden_BSD: Tensor
    """What each word is predicted from."""
    lost_BS: Tensor
    """Negative log likelihood of each."""


@dataclass
class _Watched:
    """A reasoner that notes what `generate` does with it."""

    reasoner: LatentReasoner
    noted: _Noted
    latents: list[Tensor] = field(default_factory=list[Tensor])
    """(B, D) behind each latent step."""
    layers: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """(B, L, D) by phase."""
    prompt_BPD: Tensor = field(default_factory=lambda: torch.zeros(0))
    real_BP: Tensor = field(default_factory=lambda: torch.zeros(0))
    state: Sequences | None = None
    before_speech: Sequences | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reasoner, name)

    def read(self, *given: Any) -> Sequences:
        state = self.reasoner.read(*given)
        keys = state.keys if state.pruned is None else state.pruned.keys
        assert isinstance(keys, GrowingKeys) and keys.valid_BN is not None
        self.state, self.real_BP = state, keys.valid_BN
        self.prompt_BPD = torch.cat(self.noted.normed, dim=1)
        self._note("prompt.last", keys.valid_BN[:, -self.noted.normed[-1].shape[1] :])
        return state

    def think(self, state: Sequences, active_B: Tensor) -> Any:
        replayed = self.reasoner.think(state, active_B)
        self.latents.append(state.last_hidden_BD)
        self._note(f"latent.{len(self.latents)}")
        return replayed

    def think_at_once(self, state: Sequences, count_B: Tensor) -> Any:
        replayed = self.reasoner.think_at_once(state, count_B)
        if most := int(count_B.max()):
            self.latents += list(self.noted.normed[-1][:, -most:].unbind(1))
        return replayed

    def speak(self, state: Sequences, ids_BS: Tensor, valid_BS: Tensor) -> Tensor:
        if self.before_speech is None:
            self.before_speech = state.fork()
        return self.reasoner.speak(state, ids_BS, valid_BS)

    def reads(self, words: Sequence[Sequence[int]], pad_id: int) -> _Spoken:
        """Reads given words in place of its own, all at once."""
        state = self.before_speech or self.state
        assert state is not None
        ids_BS, valid_BS = pad_rows(words, pad_id, "right")
        hidden_BSD = state.last_hidden_BD[:, None]
        if ids_BS.shape[1] > 1:
            # A row's last word is predicted, not read.
            read_BS = valid_BS[:, :-1] & valid_BS[:, 1:]
            behind = self.reasoner.speak(state, ids_BS[:, :-1], read_BS)
            hidden_BSD = torch.cat([hidden_BSD, behind], dim=1)
            self._note("speech", read_BS)
        logits_BSW = self.reasoner.logits(hidden_BSD).float()
        logits_BSW[..., self.reasoner.latent.token_id] = float("-inf")  # is never spoken
        said = logits_BSW.log_softmax(-1).gather(-1, ids_BS[..., None])[..., 0]
        return _Spoken(hidden_BSD, -said)

    def _note(self, phase: str, real_BS: Tensor | None = None) -> None:
        """What is behind each layer at the last real token of the chunk that just ran."""
        if not self.noted.behind:
            return
        stacked = torch.stack(self.noted.behind[-1], dim=1)  # (B, L, S, D)
        if real_BS is None:
            self.layers[phase] = stacked[:, :, -1]
            return
        columns = torch.arange(real_BS.shape[1])
        last_B = torch.where(real_BS, columns, 0).amax(1)
        self.layers[phase] = stacked[torch.arange(len(last_B)), :, last_B]

    def answered(self, row: int, said: Generated, words: list[int], spoken: _Spoken) -> Answered:
        """What is known of one sample."""
        prompt = self.prompt_BPD[row][self.real_BP[row]]
        states = {"prompt.last": prompt[-1]}
        if not self.reasoner.settings.prune.active:  # else another model may have other tokens left
            states["prompt.tokens"] = prompt
        states |= {f"latent.{i + 1}": state[row] for i, state in enumerate(self.latents[: said.latent_steps])}
        states["speech"] = spoken.hidden_BSD[row, : len(words)]
        # Of a single word nothing is read, and who thinks no more is padding in the chunks of the others.
        noted = [phase for phase in states if phase in self.layers and (phase != "speech" or len(words) > 1)]
        return Answered(
            said, words, {phase: _array(state) for phase, state in states.items()},
            {phase: _array(self.layers[phase][row]) for phase in noted},
            spoken.lost_BS[row, : len(words)].tolist(),
        )  # fmt: skip


def _array(state: Tensor) -> np.ndarray:
    return state.float().cpu().numpy()
