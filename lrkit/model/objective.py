"""The training objective (eq. 13 and 14; method section 6): sums over what a batch supervises, and what divides them.

Place in the pipeline: reasoner.py runs a batch -> `objective` -> the loss that train/loop.py differentiates.

Several batches of one update equal one large batch only if all are divided by the same counts. A mean of the batches'
own means would give a word of a short answer more weight than a word of a long one. So the trainer first adds up
`loss_counts` of all its batches, and hands their mean to each.

Legend: B batch, S spoken tokens, T latent steps, W vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lrkit.contract.settings import ReasonerSettings
from lrkit.model.decoder import Asked
from lrkit.model.pointing import Pointed

Distilled = tuple[Tensor, Tensor]
"""Of one latent step: L_rec per sample (B,), and which samples have one."""


class Supervised(Asked, Protocol):
    """A training batch (lrkit/data/collate.py: TrainBatch)."""

    num_latents: Tensor
    may_think: Tensor
    speech_ids: Tensor
    speech_mask: Tensor
    speech_weights: Tensor
    looks: Tensor | None


@dataclass(frozen=True)
class ReasonerLoss:
    """Losses of one batch (eq. 13 and 14)."""

    total: Tensor
    """speech + lambda * distill + weight * pointing."""
    speech: Tensor
    """Weighted mean cross entropy over spoken tokens and `<|latent|>` decisions."""
    distill: Tensor
    """L_SCF: mean over samples of the mean over their latent steps; 0 when it is off."""
    right_tokens: Tensor
    """Targets predicted right (a count)."""
    num_tokens: Tensor
    """Targets."""
    pointing: Tensor
    """Mean over the latent steps of all samples that are told where to look; 0 when it is off."""


def loss_counts(settings: ReasonerSettings, batch: Supervised) -> Tensor:
    """What the losses of a batch are means over, (3,) float32: the weight of its targets, its samples that replay
    something, and their latent steps that are told where to look. Known before the batch runs."""
    weight = (batch.speech_weights * batch.speech_mask).sum()
    if settings.think.halting == "adaptive":
        weight = weight + batch.num_latents.sum()
    pictured_B = torch.tensor([count > 0 for count in batch.images_per_sample], device=batch.num_latents.device)
    # A sample with a picture has a token left to replay in its first latent step.
    replaying = ((batch.num_latents > 0) & pictured_B).sum() * (settings.distill.weight > 0)
    return torch.stack([weight.float(), replaying.float(), _told(settings, batch).float()])


def _told(settings: ReasonerSettings, batch: Supervised) -> Tensor:
    if batch.looks is None or settings.distill.pointing == 0:
        return torch.zeros((), device=batch.num_latents.device)
    step_T = torch.arange(batch.looks.shape[1], device=batch.num_latents.device)
    return ((batch.looks.sum(2) > 0) & (step_T < batch.num_latents[:, None])).sum()


def objective(
    settings: ReasonerSettings,
    batch: Supervised,
    logits_BSW: Tensor,
    decisions: list[tuple[Tensor, Tensor]],
    distilled: list[Distilled],
    latent_id: int,
    counts: Tensor,
    pointed: Sequence[Pointed] = (),
) -> ReasonerLoss:
    """Cross entropy on speech and on `<|latent|>` decisions, plus lambda * L_SCF (eq. 13, 14), plus the pointing loss.

    Args:
        logits_BSW: of the positions before each spoken token, float32.
        decisions: where the model decides, per latent step the float32 logits (B, W) before it and the samples (B,)
            that take it.
        counts: what the sums are divided by, (3,): `loss_counts` of this batch, or the mean over an update's batches.
    """
    score, target, weight = _targets(settings, batch, logits_BSW, decisions, latent_id)
    summed = (functional.cross_entropy(score, target, reduction="none") * weight).sum()
    # Nothing that counts: a loss of 0, with gradients of 0.
    divisor = counts.clamp_min(torch.finfo(counts.dtype).tiny)
    speech = summed / divisor[0]
    distill = sum_over_samples(distilled, speech) / divisor[1]
    counted = weight > 0
    right = ((score.detach().argmax(-1) == target) & counted).sum()
    total = speech + settings.distill.weight * distill
    pointing = (
        torch.stack([loss.sum() for loss, _ in pointed]).sum() / divisor[2] if pointed else torch.zeros_like(speech)
    )
    if pointed:
        total = total + settings.distill.pointing * pointing
    return ReasonerLoss(total, speech, distill, right, counted.sum(), pointing)


def _targets(
    settings: ReasonerSettings,
    batch: Supervised,
    logits_BSW: Tensor,
    decisions: list[tuple[Tensor, Tensor]],
    latent_id: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """All that is supervised, one after the other: logits (N, W), right tokens (N,) and weights (N,)."""
    adaptive = settings.think.halting == "adaptive"
    # Only where speech begins may the model still choose to think, and only if it was not asked to speak at once.
    closed_BS = torch.ones(logits_BSW.shape[:2], dtype=torch.bool, device=logits_BSW.device)
    closed_BS[:, 0] = ~batch.may_think if adaptive else True
    latent_W = torch.arange(logits_BSW.shape[-1], device=logits_BSW.device) == latent_id
    spoken = logits_BSW.masked_fill(closed_BS[..., None] & latent_W, torch.finfo(logits_BSW.dtype).min)
    scores, targets = [spoken.flatten(0, 1)], [batch.speech_ids.flatten()]
    weights = [(batch.speech_weights * batch.speech_mask).flatten()]
    for logits_BW, active_B in decisions:
        scores.append(logits_BW)
        targets.append(torch.full_like(active_B, latent_id, dtype=torch.long))
        weights.append(active_B.to(weights[0].dtype))
    return torch.cat(scores), torch.cat(targets), torch.cat(weights)


def sum_over_samples(distilled: list[Distilled], like: Tensor) -> Tensor:
    """Of L_SCF (eq. 9): each sample's mean over its latent steps, summed over the samples."""
    if not distilled:
        return torch.zeros_like(like)
    total_B = torch.stack([loss for loss, _ in distilled]).sum(0)
    count_B = torch.stack([has for _, has in distilled]).sum(0)
    return (total_B / count_B.clamp_min(1)).sum()
