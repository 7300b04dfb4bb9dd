"""Saliency: the attention row of one position, read beside the fast attention kernel (eq. 4; method section 2).

The layer runs a function that `register` has put into transformers' table: SDPA or a flash kernel, plus, when the
caller passes a `SaliencyRow`, one `softmax(q_last . K^T)` per layer: O(keys) extra, and never an (S, S) map. Gradient
flows through the row.

Legend: B batch, H query heads, G query heads per key head, S tokens of the chunk, N keys (cached and new), D head
width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lrkit.model.flash import flash_attention
from lrkit.model.precision import wide


@dataclass
class SaliencyRow:
    """Collects, over the layers of one chunk, the attention probabilities of one position per sample."""

    last_B: Tensor | None = None
    """Index within the chunk of the position whose row is read, per sample; None: the last of the chunk."""
    total_BN: Tensor | None = None
    """Sum over the layers seen so far of the head-averaged row."""
    num_layers: int = field(default=0)
    behind: "SaliencyRow | None" = None
    """The row of the layers behind pruning, whose keys are others."""

    def add(
        self,
        query_BHSD: Tensor,
        key_BHND: Tensor,
        mask_B1SN: Tensor | None,
        scaling: float,
    ) -> None:
        """Adds one layer's row; `mask_B1SN` is True where attention is allowed, or None for plain causal."""
        batch, num_heads, _, width = query_BHSD.shape
        # A power of two, so that nothing is rounded: unscaled products are beyond float16 in trained models.
        before = 2.0 ** math.floor(math.log2(scaling))
        last_BH1D = self._last(query_BHSD) * before
        num_key_heads = key_BHND.shape[1]
        grouped = last_BH1D.reshape(batch, num_key_heads, num_heads // num_key_heads, width)
        score_BHGN = wide(grouped @ key_BHND.transpose(2, 3)) * (scaling / before)
        if mask_B1SN is not None:
            row_B11N = self._last(mask_B1SN.expand(batch, -1, -1, -1))
            score_BHGN = score_BHGN.masked_fill(~row_B11N, float("-inf"))
        self.add_row(score_BHGN.softmax(-1).mean((1, 2)))

    def add_row(self, row_BN: Tensor) -> None:
        """Adds one layer's row, averaged over its heads."""
        self.total_BN = row_BN if self.total_BN is None else self.total_BN + row_BN
        self.num_layers += 1

    def _last(self, x_BxSx: Tensor) -> Tensor:
        """The row's position alone, of the axis before the last."""
        if self.last_B is None:
            return x_BxSx[:, :, -1:]
        rows = self.last_B.view(-1, 1, 1, 1).expand(-1, x_BxSx.shape[1], 1, x_BxSx.shape[3])
        return x_BxSx.gather(2, rows)

    def begin_behind(self, last_B: Tensor | None = None) -> "SaliencyRow":
        """The row for the layers that follow; `last_B` as that of this one."""
        self.behind = SaliencyRow(last_B)
        return self.behind

    def mean(self) -> Tensor:
        """(B, N) attention probability averaged over layers and heads."""
        assert self.total_BN is not None, "no layer has run with this row"
        return self.total_BN / self.num_layers


def sdpa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Tensor:
    """SDPA attention of transformers, (B, H, S, D) over (B, G, N, D) -> (B, S, H, D)."""
    if query.device.type == "cpu" and attention_mask is not None:
        # transformers copies the keys of every head group under a mask; the CPU kernel needs no copies.
        return functional.scaled_dot_product_attention(
            query, key, value, attention_mask, kwargs["dropout"], scale=kwargs["scaling"], enable_gqa=True
        ).transpose(1, 2)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]


def _with_row(attend: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """`attend` as transformers calls it; fills `kwargs["saliency"]` (a SaliencyRow) when the caller gave one."""

    def run(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        saliency: SaliencyRow | None = kwargs.pop("saliency", None)
        output = attend(module, query, key, value, attention_mask, **kwargs)
        if saliency is not None:
            saliency.add(query, key, attention_mask, kwargs["scaling"])
        return output, None

    return run


def register(kernel: str = "sdpa") -> str:
    """Makes a kernel with the row beside it known to transformers (idempotent), and returns its name there."""
    name = f"lrkit_{kernel}"
    attend = sdpa_attention if kernel == "sdpa" else partial(flash_attention, kernel)
    ALL_ATTENTION_FUNCTIONS.register(name, _with_row(attend))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, sdpa_mask)
    return name


def visible_mask(valid_BN: Tensor, num_new: int) -> Tensor:
    """(B, 1, S, N) True where a token of a chunk of `num_new` = S tokens may look.

    `valid_BN` says which of the N keys (earlier chunks, then this one) are real. A token sees the real keys up to
    itself; a padding token sees itself too, so that no row is empty (an empty row is NaN in some kernels).
    """
    num_keys = valid_BN.shape[1]
    causal_SN = torch.ones(num_new, num_keys, dtype=torch.bool, device=valid_BN.device).tril(num_keys - num_new)
    itself_SN = torch.eye(num_new, dtype=torch.bool, device=valid_BN.device)
    itself_SN = nn.functional.pad(itself_SN, (num_keys - num_new, 0))
    return ((causal_SN & valid_BN[:, None, :]) | itself_SN)[:, None]
