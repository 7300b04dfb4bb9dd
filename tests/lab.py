"""What tests of the model share beside tiny.py: reasoners with no weight at a special value, and a run step by step.

Legend: B batch, S spoken tokens, V visual tokens, D width, W vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrkit.contract.settings import ReasonerSettings
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.replay import Replay
from lrkit.model.routing import RoutedTokens
from lrkit.model.state import Sequences
from tests.tiny import Batch, Prompt, batch, prompt, tiny_reasoner

PROMPTS = [
    prompt(1, ((1, 6, 8),), 6),
    prompt(2, ((1, 4, 6), (1, 4, 4)), 11),
    prompt(3, (), 4),
    prompt(4, ((1, 4, 4),), 8),
]
"""One picture, two, none, a small one."""


def settings(**sections: object) -> ReasonerSettings:
    """Settings from nested dictionaries, small enough for the tiny reasoner."""
    return ReasonerSettings.model_validate({"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0}, **sections})


def rich_reasoner(
    chosen: ReasonerSettings,
    seed: int = 0,
    trainable: str = "lora",
    tied: bool = True,
    dtype: torch.dtype | None = None,
) -> LatentReasoner:
    """A tiny reasoner whose norms, biases and new weights are all away from 0 and 1, so that none can be forgotten."""
    reasoner = tiny_reasoner(chosen, seed, trainable, tied)
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        for parameter in reasoner.parameters():
            if parameter.dim() <= 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if chosen.think.latents != "fed_back":  # these start alike
            constants = reasoner.latent.constant_TD
            constants.add_(0.1 * torch.randn(constants.shape, generator=generator))
    return reasoner.eval().to(dtype) if dtype is not None else reasoner.eval()


@dataclass
class Steps:
    """A teacher-forced run of LatentReasoner, taken apart."""

    state: Sequences
    sources: list[Tensor]
    """Per latent step, the hidden states (B, D) it was made from."""
    saliency: list[Tensor | None]
    """Per latent step, the scores (B, V) it chose by."""
    replays: list[Replay | None]
    speech_BSW: Tensor
    """Logits of every spoken token, the first included."""

    @property
    def routed(self) -> list[RoutedTokens]:
        return self.state.refinement.log


def run_steps(reasoner: LatentReasoner, batch: Batch) -> Steps:
    """Prefill, `num_latents` latent steps, speech: what LatentReasoner.forward does, with everything kept."""
    state = reasoner.prefill(batch)
    sources, saliency, replays = [], [], []
    if reasoner.settings.think.latents == "parallel":
        sources, saliency = [state.last_hidden_BD], [state.saliency_BV]
        replays = [reasoner.think_at_once(state, batch.num_latents)]
    for step in range(0 if sources else int(batch.num_latents.max())):
        sources.append(state.last_hidden_BD)
        saliency.append(state.saliency_BV)
        replays.append(reasoner.think(state, batch.num_latents > step))
    first = state.last_hidden_BD[:, None]
    rest = reasoner.speak(state, batch.speech_ids[:, :-1], batch.speech_mask[:, :-1])
    return Steps(state, sources, saliency, replays, reasoner.logits(torch.cat([first, rest], dim=1)))


def to_double(batch: Batch) -> Batch:
    """The same batch with its images in float64."""
    if batch.pixel_values is not None:
        batch.pixel_values = batch.pixel_values.double()
    return batch


def pieces(one: Prompt) -> tuple[list[int], tuple[tuple[int, int, int], ...], Tensor | None]:
    """A prompt as the reference takes it."""
    return one.ids, one.grids, one.pixels


@torch.no_grad()
def teach_halting(reasoner: LatentReasoner, prompts: list[Prompt], steps: list[int], margin: float = 2.0) -> None:
    """Fits the latent row so that sample i thinks exactly `steps[i]` times (a handful of equations, solved exactly)."""
    state = reasoner.prefill(batch(prompts))
    wanted = torch.tensor(steps)
    hidden, target = [], []
    for step in range(int(wanted.max()) + 1):
        asked = wanted >= step
        logits = reasoner.backbone.head(state.last_hidden_BD)
        logits[:, reasoner.latent.token_id] = float("-inf")
        sign = torch.where(wanted > step, margin, -margin)
        hidden.append(state.last_hidden_BD[asked])
        target.append((logits.amax(1) + sign)[asked])
        if step < int(wanted.max()):
            reasoner.think(state, wanted > step)
    row = torch.linalg.lstsq(torch.cat(hidden), torch.cat(target)[:, None]).solution[:, 0]
    reasoner.latent.head_row_D.copy_(row)
