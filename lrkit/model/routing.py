"""Routing depth scaling (RDS, eq. 10 to 12 and 15; method section 5): hard tokens pass again through their layer.

`RoutedLayer` holds one layer's router and step encodings. It does not own the transformer layer: the caller passes
`run(tokens, mask, rotary, keys)`, so that the refined pass uses the same weights and the same LoRA.

Legend: B batch, S tokens of the chunk, A routed tokens, N refinement keys (of earlier chunks, then this one), D
width, R depth.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lrkit.contract.settings import RoutingSettings
from lrkit.model.keys import GrowingKeys, Keys
from lrkit.model.precision import Float32Module, exact, wide

Rotary = tuple[Tensor, Tensor]
RunLayer = Callable[[Tensor, Tensor | None, Rotary, Keys], Tensor]
MakeRotary = Callable[[Tensor], Rotary]


@dataclass(frozen=True)
class RoutedTokens:
    """Which tokens of one chunk one layer routed, and how deep each really went (for reports)."""

    layer: int
    chunk: int
    index_BA: Tensor
    """Index within the chunk, ascending; -1 where fewer than A tokens were real."""
    depth_BA: Tensor
    """Extra passes executed, 0..R."""
    real_BS: Tensor
    """Which tokens of the chunk are no padding."""


@dataclass
class RefinementState:
    """Refinement keys of earlier chunks: those of each routed layer and depth apart."""

    make_rotary: MakeRotary
    """Positions (B, A) -> rotary embeddings, for `rearrange`."""
    keys: dict[tuple[int, int], Keys] = field(default_factory=dict)
    """(layer, depth) -> its keys; absent before the first pass."""
    num_routed: dict[int, Tensor] = field(default_factory=dict)
    """layer -> tokens (B, 1) it has routed in earlier chunks, for `rearrange`."""
    log: list[RoutedTokens] = field(default_factory=list)
    may_stop_early: bool = True
    """Leave the depth loop once no token goes on, which must wait for the device; False runs every depth."""

    def keys_of(self, layer: int, depth: int) -> Keys:
        """The keys of one layer and depth."""
        if (layer, depth) not in self.keys:
            # A mask is cheaper than a wait for the device in every routed layer.
            self.keys[layer, depth] = GrowingKeys(may_be_plain=False)
        return self.keys[layer, depth]


def make_router(kind: str, width: int) -> nn.Module:
    """Scores a token: D -> 1 (`linear`) or D -> D -> 1 (`mlp`)."""
    if kind == "linear":
        return nn.Linear(width, 1)
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))


class RoutedLayer(Float32Module):
    """Router and step encodings of one layer. Number types: precision.py."""

    def __init__(self, settings: RoutingSettings, layer: int, num_layers: int, width: int) -> None:
        super().__init__()
        self.settings = settings
        self.layer = layer
        self.alpha = settings.alpha_of(layer, num_layers)
        self.router = make_router(settings.router, width)
        # Zero: a model with routing starts out exactly as its backbone (method section 5, point 4).
        self.step_encoding_RD = nn.Parameter(torch.zeros(settings.depth, width))

    def score(self, hidden: Tensor) -> Tensor:
        """Router scores in float32, (..., D) -> (...)."""
        with exact(hidden):
            return self.router(wide(hidden)).squeeze(-1)

    def gate(self, score: Tensor, valid: Tensor) -> Tensor:
        """Gates in 0..1 over the last axis; `softmax` normalises over the valid tokens."""
        if self.settings.gate == "sigmoid":
            return score.sigmoid()
        return score.masked_fill(~valid, torch.finfo(score.dtype).min).softmax(-1)

    def choose(self, score_BS: Tensor, valid_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The top min(A, S) real tokens by score, sorted by position: index (B, A) and valid (B, A).

        Ties go to the earlier token. Where a sample has fewer real tokens, padding fills the row and is not valid.
        """
        count = min(self.alpha, score_BS.shape[1])
        ranked = (
            score_BS.detach().masked_fill(~valid_BS, float("-inf")).sort(dim=1, descending=True, stable=True).indices
        )
        index_BA = ranked[:, :count].sort(dim=1).values
        return index_BA, valid_BS.gather(1, index_BA)

    def forward(
        self,
        hidden_BSD: Tensor,
        valid_BS: Tensor,
        rotary: Rotary,
        state: RefinementState,
        chunk: int,
        run: RunLayer,
    ) -> Tensor:
        """Adds the refinement to the routed tokens of one chunk: (B, S, D) -> (B, S, D); the others are untouched."""
        score_BS = self.score(hidden_BSD)
        index_BA, valid_BA = self.choose(score_BS, valid_BS)
        index_BAD = index_BA[..., None].expand(-1, -1, hidden_BSD.shape[-1])
        routed_BAD = hidden_BSD.gather(1, index_BAD)
        if self.settings.positions == "keep":
            rotary_A = gather_rotary(rotary, index_BA)
        else:
            rotary_A = state.make_rotary(self._rearranged(valid_BA, state))
        gate_BA = self.gate(score_BS, valid_BS).gather(1, index_BA)
        update_BAD, depth_BA = self._refine(routed_BAD, gate_BA, valid_BA, rotary_A, state, run)
        state.log.append(RoutedTokens(self.layer, chunk, torch.where(valid_BA, index_BA, -1), depth_BA, valid_BS))
        return hidden_BSD.scatter(1, index_BAD, (routed_BAD + update_BAD).to(hidden_BSD.dtype))

    def _refine(
        self,
        token_BAD: Tensor,
        gate_BA: Tensor,
        active_BA: Tensor,
        rotary: Rotary,
        state: RefinementState,
        run: RunLayer,
    ) -> tuple[Tensor, Tensor]:
        """The depth loop: (sum over d of e(d) * u(d) in float32, depth executed per token)."""
        update_BAD = torch.zeros_like(wide(token_BAD))
        depth_BA = torch.zeros_like(active_BA, dtype=torch.long)
        threshold = self.settings.threshold
        for depth in range(self.settings.depth):
            if depth > 0:
                gate_BA = self.gate(self.score(token_BAD), active_BA)
            if threshold > 0:
                active_BA = active_BA & (gate_BA >= threshold)
                if not self.training and state.may_stop_early and not bool(active_BA.any()):
                    break
            keys = state.keys_of(self.layer, depth)
            refined = wide(run(token_BAD, keys.extend(active_BA), rotary, keys))
            # Where, not a product: what a stopped or padded token computed must not leak as 0 * inf.
            gated_BAD = torch.where(active_BA[..., None], gate_BA[..., None] * refined, 0.0)
            update_BAD = update_BAD + self.step_encoding_RD[depth] * gated_BAD
            token_BAD = gated_BAD.to(token_BAD.dtype)
            depth_BA = depth_BA + active_BA
        return update_BAD, depth_BA

    def _rearranged(self, valid_BA: Tensor, state: RefinementState) -> Tensor:
        """Positions (B, A) that count the routed tokens of all chunks one after the other from 0. Updates `state`.

        Tokens that the threshold stops count too: where they stop says nothing about where the next ones stand.
        """
        count_BA = valid_BA.long().cumsum(1) + state.num_routed.get(self.layer, 0)
        state.num_routed[self.layer] = count_BA[:, -1:]
        return (count_BA - 1).clamp_min(0)


def gather_rotary(rotary: Rotary, index_BA: Tensor) -> Rotary:
    """Rotary embeddings of some tokens of a chunk; cos and sin carry the tokens on the axis before the last."""

    def pick(table: Tensor) -> Tensor:
        index = index_BA.view(*[1] * (table.dim() - 3), *index_BA.shape, 1)
        return table.gather(-2, index.expand(*table.shape[:-2], index_BA.shape[1], table.shape[-1]))

    return pick(rotary[0]), pick(rotary[1])
