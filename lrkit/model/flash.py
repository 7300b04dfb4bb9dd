"""Attention of the language model by the flash kernels, through transformers' own way to them.

A flash kernel takes no mask. Every mask of lrkit (keys.py, saliency.py: `visible_mask`) says the same thing: a token
sees the real keys up to itself. That is causal attention over what is real, so padding, empty slots of a latent chunk
and tokens that were not routed are taken out, the rest is packed into one sequence per sample, and the results go back
to their places. What was taken out comes back as zeros; nothing reads it.

Legend: B batch, H query heads, G key heads, S tokens of the chunk, N keys (cached and new), D head width, Q real
queries and K real keys of the batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.integrations.flash_attention import get_target_dtype
from transformers.modeling_flash_attention_utils import (
    _flash_attention_forward,  # pyright: ignore[reportPrivateUsage]
)


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a batch stand."""

    query_Q: Tensor
    """Places among B * S queries."""
    key_K: Tensor
    """Places among B * N keys."""
    query_ends: Tensor
    """(B + 1) int32: 0, then where each sample's queries end among the packed ones."""
    key_ends: Tensor
    """The same for keys."""
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, mask_B1SN: Tensor) -> "Packing":
        """Of the mask of a chunk whose tokens are the last S of N keys. Waits for the device."""
        num_new = mask_B1SN.shape[2]
        # The chunk's last token sees every real key. Itself it sees even as padding, where its result is not read.
        real_BN = mask_B1SN[:, 0, -1]
        real_BS = real_BN[:, -num_new:]
        counts = torch.stack([real_BS.sum(1), real_BN.sum(1)])
        most_queries, most_keys = counts.amax(1).tolist()
        query_ends, key_ends = functional.pad(counts.cumsum(1), (1, 0)).to(torch.int32)
        return cls(
            real_BS.flatten().nonzero().flatten(), real_BN.flatten().nonzero().flatten(), query_ends, key_ends,
            most_queries, most_keys,
        )  # fmt: skip


_packings: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Mask -> its packing: all layers of a chunk share a mask, and only the first of them waits for the device."""


def _packing_of(mask_B1SN: Tensor) -> Packing:
    found: Packing | None = _packings.get(mask_B1SN)
    if found is None:
        found = _packings[mask_B1SN] = Packing.of(mask_B1SN)
    return found


def flash_attention(
    kernel: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Tensor:
    """(B, H, S, D) over (B, G, N, D) -> (B, S, H, D), by the kernel of that name. The mask is (B, 1, S, N), True where
    attention is allowed, or None for plain causal."""
    query_BSHD, key_BNGD, value_BNGD = (tensor.transpose(1, 2) for tensor in (query, key, value))
    given: dict[str, Any] = {
        "dropout": kwargs.get("dropout", 0.0), "softmax_scale": kwargs["scaling"], "is_causal": True,
        "attn_implementation": kernel, "target_dtype": get_target_dtype(query, module),
    }  # fmt: skip
    if attention_mask is None:
        return _flash_attention_forward(
            query_BSHD, key_BNGD, value_BNGD, None, query_length=query_BSHD.shape[1], **given
        )
    at = _packing_of(attention_mask)
    flat = query_BSHD.flatten(0, 1)
    ends: dict[str, Any] = {"cu_seq_lens_q": at.query_ends, "cu_seq_lens_k": at.key_ends}
    packed = _flash_attention_forward(
        flat[at.query_Q][None], key_BNGD.flatten(0, 1)[at.key_K][None], value_BNGD.flatten(0, 1)[at.key_K][None], None,
        query_length=at.most_queries, max_length_q=at.most_queries, max_length_k=at.most_keys, **ends, **given,
    )  # fmt: skip
    placed = packed.new_zeros(flat.shape).index_copy(0, at.query_Q, packed[0])
    return placed.view(query_BSHD.shape)
