"""What the flash kernels compute, in plain torch on any device: the two functions that transformers takes from their
package, after the documentation of flash_attn 2.1 and later. Causal attention is aligned to the last key.

Legend: B batch, S queries, N keys, H heads, G key heads, D head width, Q and K queries and keys of all samples.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, modeling_flash_attention_utils


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False
) -> Tensor:
    """(B, S, H, D) over (B, N, G, D) -> (B, S, H, D)."""
    assert dropout_p == 0.0 and softmax_scale is not None, "the reference drops nothing and guesses no scale"
    groups = q.shape[2] // k.shape[2]
    key_BNHD, value_BNHD = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    score_BHSN = torch.einsum("bshd,bnhd->bhsn", q, key_BNHD).float() * softmax_scale
    if causal:
        num_new, num_keys = q.shape[1], k.shape[1]
        seen_SN = torch.ones(num_new, num_keys, dtype=torch.bool, device=q.device).tril(num_keys - num_new)
        score_BHSN = score_BHSN.masked_fill(~seen_SN, float("-inf"))
    return torch.einsum("bhsn,bnhd->bshd", score_BHSN.softmax(-1).to(v.dtype), value_BNHD)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """(Q, H, D) over (K, G, D) -> (Q, H, D), sample after sample."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert int(cu_seqlens_q[-1]) == len(q) and int(cu_seqlens_k[-1]) == len(k) == len(v)
    counts = [(ends[1:] - ends[:-1]).tolist() for ends in (cu_seqlens_q, cu_seqlens_k)]
    assert [max(found) for found in counts] == [int(max_seqlen_q), int(max_seqlen_k)]
    samples = zip(
        *(tensor.split(found) for tensor, found in ((q, counts[0]), (k, counts[1]), (v, counts[1]))), strict=True
    )
    found = [flash_attn_func(a[None], b[None], c[None], dropout_p, softmax_scale, causal)[0] for a, b, c in samples]
    return torch.cat(found)


@dataclass
class Calls:
    """What was asked of the kernels: (name, causal, packed), in turn."""

    seen: list[tuple[str, bool, bool]] = field(default_factory=list[tuple[str, bool, bool]])

    def noting(self, name: str, kernel: Callable[..., Tensor], packed: bool) -> Callable[..., Tensor]:
        """The kernel, which notes each call; transformers reads its signature."""

        def run(*given: Any, **named: Any) -> Tensor:
            self.seen.append((name, named["causal"], packed))
            return kernel(*given, **named)

        run.__wrapped__ = kernel  # pyright: ignore[reportFunctionMemberAccess]
        return run


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """transformers finds the reference where it looks for flash_attn, and may use it on a CPU."""
    calls = Calls()

    def lazy(implementation: str, *_: Any, **__: Any) -> tuple[Any, ...]:
        utils: Any = modeling_flash_attention_utils
        plain = calls.noting(implementation, flash_attn_func, packed=False)
        varlen = calls.noting(implementation, flash_attn_varlen_func, packed=True)
        return plain, varlen, None, utils._pad_input, utils._unpad_input

    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lazy)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    return calls
