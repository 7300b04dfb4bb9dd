"""Visual replay (SCF-VR, eq. 5 and 6; method section 3): which visual tokens come back before a latent, and with
what weight.

With a fine source (`fine_replay`) it is not the prompt's own token that comes back: the tower reads what that token
covers in the full picture, and all tokens of this window are replayed with the weight of the one that was selected.

Legend: B batch, V visual tokens of the prompt (padded to the largest sample), K selected tokens, R replayed tokens (K,
    or F for each of K windows), F tokens of a window, E width of a visual token's row: its input embedding, and what it
    adds behind deeper layers, M patches of a window, C values of a patch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lrkit.contract.settings import ReplaySettings
from lrkit.contract.weightings import WEIGHTINGS
from lrkit.errors import DataError
from lrkit.families.protocols import Grid
from lrkit.model.precision import wide
from lrkit.registry import load_object

Weigh = Callable[[Tensor, Tensor], Tensor]
"""(scores (B, K), which slots hold a token (B, K)) -> weights (B, K), 0 in empty slots. The scores of these are
meaningless."""


@dataclass(frozen=True)
class Windows:
    """What each visual token of the prompt covers in the full picture."""

    pixels_BVMC: Tensor
    """Its patches, as the tower reads them."""
    grid: Grid
    """Their cut, the same for all."""


class FullPictures(Protocol):
    """The part of a batch that a fine replay reads."""

    windows: Tensor | None
    window_grid: Grid | None


def windows_of(pictures: FullPictures, real_BV: Tensor) -> Windows | None:
    """The windows of a batch with these visual tokens; None where there are none.

    Raises:
        DataError: there is not one for each visual token.
    """
    if pictures.windows is None or pictures.window_grid is None:
        return None
    if pictures.windows.shape[:2] != real_BV.shape:
        raise DataError(
            f"the prompts have {real_BV.shape[1]} visual tokens and {pictures.windows.shape[1]} windows of their full "
            "pictures; give each visual token its own"
        )
    return Windows(pictures.windows, pictures.window_grid)


@dataclass(frozen=True)
class Replay:
    """What one latent step replays."""

    tokens_BRE: Tensor
    """Replayed rows, weighted as a whole, in prompt order, windows row by row; (B, 1, E) for soft_mix."""
    valid_BR: Tensor
    """Slots that hold a token; the others must be masked out of attention."""
    index_BK: Tensor
    """Visual index (0..V-1) of the selected tokens in prompt order; -1 where a slot is empty."""
    weight_BK: Tensor
    """Weight of each selected token, 0 where a slot is empty."""
    selected_BV: Tensor
    """Visual tokens selected by this step; the caller marks them visited."""


def select(score_BV: Tensor, free_BV: Tensor, num_tokens: int, slots: int | None = None) -> tuple[Tensor, Tensor]:
    """Top `num_tokens` free visual tokens by score, in prompt order.

    Ties go to the lower index. Returns index (B, K) and valid (B, K), where K is the most that a sample selects (0 when
    nothing is left): no slot is empty in all samples. Empty slots come last and have index V - 1, which the caller must
    not read. With `slots`, K is that number whatever is left, and nothing waits for the device.
    """
    num_visual = score_BV.shape[1]
    k = min(num_tokens, int(free_BV.sum(1).max())) if slots is None else slots
    ranked = (
        score_BV.detach().masked_fill(~free_BV, float("-inf")).sort(dim=1, descending=True, stable=True).indices[:, :k]
    )
    valid = free_BV.gather(1, ranked)
    ordered = torch.where(valid, ranked, num_visual).sort(dim=1).values
    return ordered.clamp_max(num_visual - 1), ordered < num_visual


def weigh(score_BK: Tensor, valid_BK: Tensor, weighting: str) -> Tensor:
    """Weights (B, K) of the selected tokens, 0 in empty slots; `weighting` is a row of lrkit/contract/weightings.py."""
    function: Weigh = load_object(WEIGHTINGS[weighting].torch, f"replay weighting {weighting}")
    return function(score_BK, valid_BK)


def by_softmax(score_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """Eq. 6."""
    return score_BK.masked_fill(~valid_BK, torch.finfo(score_BK.dtype).min).softmax(1).masked_fill(~valid_BK, 0.0)


def by_mean(score_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """Scores divided by their mean, so that the average token keeps its norm."""
    score_BK = score_BK.masked_fill(~valid_BK, 0.0)
    count_B1 = valid_BK.sum(1, keepdim=True).clamp_min(1)
    return score_BK / (score_BK.sum(1, keepdim=True) / count_B1).clamp_min(torch.finfo(score_BK.dtype).tiny)


def alike(score_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """1 each."""
    return valid_BK.to(score_BK.dtype)


def replay(
    settings: ReplaySettings, score_BV: Tensor, rows_BVE: Tensor, free_BV: Tensor, slots: int | None = None
) -> Replay:
    """Selects, weighs and forms the replayed tokens of one latent step, which are the prompt's own.

    Args:
        score_BV: saliency of each visual token.
        rows_BVE: of the prompt's visual tokens.
        free_BV: True for real tokens not replayed before.
        slots: as in `select`.
    """
    index, valid = select(score_BV, free_BV, settings.num_tokens, slots)
    tokens = rows_BVE.gather(1, index[..., None].expand(-1, -1, rows_BVE.shape[-1]))
    return _formed(settings, score_BV, free_BV, index, valid, tokens[:, :, None])


def fine_replay(
    settings: ReplaySettings,
    score_BV: Tensor,
    windows: Windows,
    free_BV: Tensor,
    encode: Callable[[Tensor, Tensor], Tensor],
) -> Replay:
    """As `replay`, of the full picture: the windows of the selected tokens, all of them encoded in one call.

    `encode` is `Backbone.encode_images`. Windows of samples that select nothing are not encoded.
    """
    index, valid = select(score_BV, free_BV, settings.num_tokens)
    samples, slots = valid.nonzero(as_tuple=True)
    pixels_NMC = windows.pixels_BVMC[samples, index[samples, slots]]
    grids = torch.tensor([windows.grid], device=index.device).expand(len(samples), -1)
    rows_NFE = encode(pixels_NMC.flatten(0, 1), grids).unflatten(0, (len(samples), -1))
    tokens = rows_NFE.new_zeros(*index.shape, *rows_NFE.shape[1:]).index_put((samples, slots), rows_NFE)
    return _formed(settings, score_BV, free_BV, index, valid, tokens)


def _formed(
    settings: ReplaySettings, score_BV: Tensor, free_BV: Tensor, index: Tensor, valid: Tensor, tokens_BKFE: Tensor
) -> Replay:
    """The selected tokens, or windows of F tokens, weighed and formed."""
    weight = weigh(score_BV.gather(1, index), valid, settings.weighting)
    tokens = (wide(tokens_BKFE) * weight[..., None, None]).flatten(1, 2)
    # Summed, not written: an empty slot shares its index with a real token.
    selected = torch.zeros_like(free_BV, dtype=torch.long).scatter_add(1, index, valid.long()) > 0
    count = tokens_BKFE.shape[2]
    filled = valid.repeat_interleave(count, 1)
    if settings.formation == "soft_mix":
        # One token whatever the weighting: the weights are normalised to sum 1, or its norm would grow with K.
        total_B11 = (count * weight.sum(1)).clamp_min(torch.finfo(weight.dtype).tiny)[:, None, None]
        tokens = tokens.sum(1, keepdim=True) / total_B11
        filled = valid.any(1, keepdim=True)
    return Replay(tokens.to(tokens_BKFE.dtype), filled, torch.where(valid, index, -1), weight, selected)
