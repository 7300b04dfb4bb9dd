"""Weights cut into parts are those weights, however many processes share them (lrkit/train/parts.py)."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lrkit.train.parts import Cut, Part

sizes, processes = st.integers(1, 70), st.integers(1, 9)


@given(sizes, processes)
def test_each_number_is_kept_by_one_process(size: int, count: int) -> None:
    kept = [number for process in range(count) for number in range(size)[Cut(size, count).of(process)]]
    assert kept == list(range(size))


@given(sizes, processes)
def test_what_is_packed_has_a_row_for_each_process(size: int, count: int) -> None:
    cut, flat = Cut(size, count), torch.arange(1.0, size + 1)
    packed_NK = torch.zeros(count, cut.width)
    cut.write(flat, packed_NK)
    for process in range(count):
        own = flat[cut.of(process)]
        assert torch.equal(packed_NK[process, : len(own)], own) and not packed_NK[process, len(own) :].any()
    assert torch.equal(cut.read(packed_NK), flat)


@given(st.lists(st.integers(1, 5), max_size=3), processes, st.data())
def test_a_part_lies_in_a_weight_of_its_own_type_and_beside_a_narrower_one(
    shape: list[int], count: int, data: st.DataObject
) -> None:
    process = data.draw(st.integers(0, count - 1))
    values = torch.arange(torch.Size(shape).numel()).reshape(shape) + 0.001
    for narrow in (None, torch.bfloat16):
        part = Part.of(nn.Parameter(values.clone()), process, count, narrow)
        assert torch.equal(part.own, values.flatten()[part.cut.of(process)])
        assert part.whole.dtype == (narrow or torch.float32) and part.whole.shape == values.shape
        before = part.whole.detach().clone()
        part.own.data.add_(1.0)
        changed = part.whole.detach() != before
        assert int(changed.sum()) == (part.own.numel() if narrow is None else 0)
