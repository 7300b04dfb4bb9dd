"""Weights cut into equal parts, one for each process of a run, and the two exchanges between all of them.

    gradients, whole in every process --`sum_parts`--> the sum of each part, in the process that keeps it
    parts, one in each process        --`join_parts`-> whole weights, in every process

Place in the pipeline: lrkit/train/shards.py. A weight is cut as a flat row of numbers, so that a router of one row is
shared out as evenly as a matrix. All processes must hand over the same weights in the same order.

Legend: N processes, K numbers of one process's parts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

MOST_AT_ONCE = 2**25
"""Numbers that are exchanged at once, unless one weight has more: what is packed for it is there twice meanwhile."""
# torch 2.13 has other names for the same.
_SINGLE = hasattr(distributed, "all_gather_single")
_REDUCE: Any = getattr(distributed, "reduce_scatter_single" if _SINGLE else "reduce_scatter_tensor", None)
_GATHER: Any = getattr(distributed, "all_gather_single" if _SINGLE else "all_gather_into_tensor", None)


def narrows(backbone: nn.Module, half: bool) -> bool:
    """Whether a backbone that trains in parts computes with bfloat16 weights, where products are in bfloat16 (`half`):
    its float32 numbers are in the parts, if all of it trains."""
    return half and all(weight.requires_grad for weight in backbone.parameters())


@dataclass(frozen=True)
class Cut:
    """Where one weight of `size` numbers is cut. Parts have `width` numbers; the last ones have fewer, or none."""

    size: int
    processes: int

    @property
    def width(self) -> int:
        """Numbers of a whole part."""
        return -(-self.size // self.processes)

    def of(self, process: int) -> slice:
        """The numbers that a process keeps."""
        return slice(min(self.size, process * self.width), min(self.size, (process + 1) * self.width))

    def write(self, flat: Tensor, columns_NK: Tensor) -> None:
        """The numbers of a weight into its columns, one row for each process; what is left of a row is not touched."""
        full = self.size // self.width
        columns_NK[:full] = flat[: full * self.width].view(full, self.width)
        if rest := self.size - full * self.width:
            columns_NK[full, :rest] = flat[full * self.width :]

    def read(self, columns_NK: Tensor) -> Tensor:
        """The inverse of `write`: a row of `size` numbers."""
        return columns_NK.reshape(-1)[: self.size]


@dataclass
class Part:
    """A weight that is trained, and this process's part of it."""

    whole: nn.Parameter
    """What the model computes with."""
    own: nn.Parameter
    """The part that this process updates: a flat row, in float32. Where the model computes in float32 too, it lies in
    `whole`; else beside it."""
    cut: Cut
    narrow: torch.dtype | None
    """The type that the model computes with; None: that of `own`."""

    @classmethod
    def of(cls, whole: nn.Parameter, process: int, processes: int, narrow: torch.dtype | None) -> "Part":
        """Cuts a weight, which then has the type `narrow`."""
        cut = Cut(whole.numel(), processes)
        whole.data = whole.data.contiguous()
        own = whole.data.view(-1)[cut.of(process)]
        if narrow is not None:
            own, whole.data = own.clone(), whole.data.to(narrow)
        return cls(whole, nn.Parameter(own), cut, narrow)

    def is_inside(self, process: int) -> bool:
        """Whether a change of `whole` is one of `own`."""
        return self.own.data_ptr() == self.whole.data.view(-1)[self.cut.of(process)].data_ptr()


def sum_parts(parts: Sequence[Part], processes: int) -> Iterator[tuple[Part, Tensor]]:
    """Adds up the gradients of all processes, and drops them: of each part, the float32 sum of this process's numbers.

    A process without a gradient counts as one of zeros.
    """
    for chosen in _at_once(parts):
        like = chosen[0].own
        packed_NK = torch.zeros(processes, _width(chosen), dtype=torch.float32, device=like.device)
        for part, columns in _columns(chosen):
            if part.whole.grad is not None:
                part.cut.write(part.whole.grad.reshape(-1), packed_NK[:, columns])
                part.whole.grad = None
        sum_K = packed_NK[0]
        if processes > 1:
            sum_K = torch.empty_like(packed_NK[0])
            _REDUCE(sum_K, packed_NK.view(-1))
        for part, columns in _columns(chosen):
            yield part, sum_K[columns][: part.own.numel()]


def join_parts(
    parts: Sequence[Part], processes: int, numbers: Callable[[Part], Tensor], dtype: torch.dtype
) -> Iterator[tuple[Part, Tensor]]:
    """What each process has for its part (`numbers`, a row as long as `Part.own`), put together in the shape of the
    weight."""
    for chosen in _at_once(parts):
        own_K = torch.zeros(_width(chosen), dtype=dtype, device=chosen[0].own.device)
        for part, columns in _columns(chosen):
            own_K[columns][: part.own.numel()] = numbers(part)
        packed_NK = own_K[None]
        if processes > 1:
            packed_NK = torch.empty(processes, len(own_K), dtype=dtype, device=own_K.device)
            _GATHER(packed_NK.view(-1), own_K)
        for part, columns in _columns(chosen):
            yield part, part.cut.read(packed_NK[:, columns]).view(part.whole.shape)


def _at_once(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The same weights in the same order, as many at a time as may be exchanged."""
    chosen: list[Part] = []
    for part in parts:
        if chosen and sum(one.cut.size for one in chosen) + part.cut.size > MOST_AT_ONCE:
            yield chosen
            chosen = []
        chosen.append(part)
    if chosen:
        yield chosen


def _columns(parts: Sequence[Part]) -> Iterator[tuple[Part, slice]]:
    """Where each weight stands in what is packed."""
    start = 0
    for part in parts:
        yield part, slice(start, start + part.cut.width)
        start += part.cut.width


def _width(parts: Sequence[Part]) -> int:
    return sum(part.cut.width for part in parts)
