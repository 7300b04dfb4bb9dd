"""The pointing loss: teaches the saliency row that selects where to look (method section 4). Training only.

Nothing else pulls that row towards a place that says nothing yet: in a small picture, where the signs cannot be read,
the answer's loss alone teaches the first look and no other. The target comes from labels of the data, or from a teacher
that sees the full picture: its own saliency row at the same latent step.

Legend: B batch, V visual tokens of the prompt, U visual tokens of the teacher's.
"""

import torch
from torch import Tensor

from lrkit.model.precision import wide

Pointed = tuple[Tensor, Tensor]
"""Of one latent step: the loss of each sample (B,), and which samples have one."""


def pointing_loss(saliency_BV: Tensor, target_BV: Tensor, active_B: Tensor) -> Pointed:
    """Cross entropy between the target and the saliency of all visual tokens, as shares that sum to 1. Samples that
    have stopped, or whose target is all 0, have none."""
    has_B = active_B & (target_BV.sum(1) > 0)
    score_BV = wide(saliency_BV)
    share_BV = score_BV / score_BV.sum(1, keepdim=True).clamp_min(torch.finfo(score_BV.dtype).tiny)
    loss_B = -(target_BV * share_BV.clamp_min(1e-9).log()).sum(1)
    return torch.where(has_B, loss_B, 0.0), has_B


def as_target(saliency_BU: Tensor, overlap_BUV: Tensor, sharpness: float = 1.0) -> Tensor:
    """A teacher's saliency row, pooled to the tokens that the student chooses from and raised to the power `sharpness`:
    (B, V), summing to 1; 0 where there is no picture."""
    pooled_BV = torch.einsum("bu,buv->bv", wide(saliency_BU), overlap_BUV)
    least = torch.finfo(pooled_BV.dtype).tiny
    # Of the largest, so that powers of small probabilities do not vanish.
    sharp_BV = (pooled_BV / pooled_BV.amax(1, keepdim=True).clamp_min(least)) ** sharpness
    return sharp_BV / sharp_BV.sum(1, keepdim=True).clamp_min(least)
