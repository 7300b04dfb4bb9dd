"""Whether a model answers its calibration set in bfloat16: half the memory, and half the time on a CPU that multiplies
it.

It is for large models alone whose weights are bfloat16 already, so that none of them changes: what was published so,
and has no adapter merged into it. Sums of products stay float32, and so does all rounding.

Place in the pipeline: calibrate.py asks before it gathers.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lrkit.model.reasoner import LatentReasoner

LEAST_WEIGHTS = 1_000_000_000
"""Smaller models are calibrated in float32: there time and memory are small."""


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it."""
    asked: Any = torch.cpu  # no public name tells it
    return bool(asked._is_avx512_bf16_supported() or asked._is_amx_tile_supported())


def quicken(reasoner: LatentReasoner, matrices: Iterable[Tensor]) -> str:
    """Turns the backbone to bfloat16 where the rule above says so; what it computes in then. `matrices` are its
    weights that matter."""
    kind = reasoner.backbone.embedding_rows().dtype
    large = sum(weight.numel() for weight in reasoner.backbone.model.parameters()) >= LEAST_WEIGHTS
    exact = kind == torch.float32 and reasoner.adapter is None and large
    if exact and multiplies_bfloat16() and all(_is_bfloat16(one) for one in matrices):
        to_bfloat16(reasoner)
        kind = torch.bfloat16
    return str(kind).removeprefix("torch.")


def to_bfloat16(reasoner: LatentReasoner) -> None:
    """The backbone's weights, one after the other. Its buffers stay: angles of positions need their digits."""
    model: Any = reasoner.backbone.model
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)


def _is_bfloat16(weight: Tensor) -> bool:
    return all(bool((rows.bfloat16().float() == rows).all()) for rows in weight.split(1024))
