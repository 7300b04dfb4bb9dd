"""Visual-token pruning: behind one layer of the prompt, the visual tokens with the least saliency leave
(docs/method.md, section 8).

Place in the pipeline: decoder.py runs the prompt to the pruned layer, asks `choose` who stays, and runs the rest of the
layers over these alone.

Legend: B batch, P prompt tokens, S tokens that stay (padded to the largest sample), V visual tokens.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrkit.contract.settings import PruneSettings
from lrkit.model.routing import RoutedTokens
from lrkit.model.state import VisualTokens


@dataclass(frozen=True)
class Survivors:
    """Which tokens of a prompt stay."""

    index_BS: Tensor
    """Columns of the prompt, ascending; padding comes last."""
    real_BP: Tensor
    """Which tokens of the prompt are no padding."""
    valid_BS: Tensor
    """False for padding."""
    kept_BV: Tensor
    """Visual tokens that stay."""
    column_BV: Tensor
    """Column of each of them among the survivors; meaningless for the others."""

    def of(self, tokens_BPx: Tensor) -> Tensor:
        """(B, P, x) -> (B, S, x)."""
        return tokens_BPx.gather(1, self.index_BS[..., None].expand(-1, -1, tokens_BPx.shape[-1]))

    def among(self, part_BP: Tensor) -> Tensor:
        """Which survivors (B, S) are of a part of the prompt."""
        return part_BP.gather(1, self.index_BS) & self.valid_BS

    def reported(self, routed: RoutedTokens, real_BP: Tensor) -> RoutedTokens:
        """What was routed among the survivors of a part of the prompt, by columns of the prompt."""
        column_BA = self.index_BS.gather(1, routed.index_BA.clamp_min(0))
        return replace(routed, index_BA=torch.where(routed.index_BA < 0, -1, column_BA), real_BS=real_BP)


def num_kept(count: Tensor, settings: PruneSettings) -> Tensor:
    """Of so many visual tokens: their share, rounded up. So where there is one, one stays."""
    return (count * settings.share + 999) // 1000


def choose(settings: PruneSettings, score_BV: Tensor, visual: VisualTokens, valid_BP: Tensor) -> Survivors:
    """The visual tokens with the greatest scores, ties to the lower index, and all other tokens."""
    real_BV = visual.real_BV
    order_BV = score_BV.detach().masked_fill(~real_BV, float("-inf")).sort(dim=1, descending=True, stable=True).indices
    rank_V = torch.arange(real_BV.shape[1], device=real_BV.device)
    among_BV = rank_V < num_kept(real_BV.sum(1), settings)[:, None]
    kept_BV = torch.zeros_like(real_BV).scatter(1, order_BV, among_BV)
    leaves_BP = torch.zeros_like(valid_BP).scatter(1, visual.column_BV, real_BV & ~kept_BV)
    stays_BP = valid_BP & ~leaves_BP
    count_B = stays_BP.sum(1)
    size = int(count_B.max())
    index_BS = (~stays_BP).to(torch.int8).sort(dim=1, stable=True).indices[:, :size]
    valid_BS = torch.arange(size, device=count_B.device) < count_B[:, None]
    column_BP = (stays_BP.long().cumsum(1) - 1).clamp_min(0)
    return Survivors(index_BS, valid_BP, valid_BS, kept_BV, column_BP.gather(1, visual.column_BV))
