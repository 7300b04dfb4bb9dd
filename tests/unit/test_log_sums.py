"""A line of the log over updates of which some were made by another number of processes."""

import pytest
import torch
from accelerate import Accelerator

from lrkit.train.log_sums import Sums
from lrkit.train.share import Share

LOSSES = {1: 1.0, 2: 5.0}
"""Update -> its loss, whoever makes it."""
TOKENS, RIGHT, ACCUMULATE = 80.0, {1: 20.0, 2: 60.0}, 4


def update(sums: Sums, number: int, share: Share) -> None:
    """What the mean over the processes of one update is: each has `rounds` batches and its part of the tokens."""
    for _ in range(share.rounds):
        each = share.processes * share.rounds
        sums.add(
            loss=torch.tensor(LOSSES[number]), batches=torch.tensor(1.0),
            right=torch.tensor(RIGHT[number] / each), tokens=torch.tensor(TOKENS / each),
        )  # fmt: skip
    sums.add(grad_norm=torch.tensor(LOSSES[number]), clipped=torch.tensor(1.0))


@pytest.mark.parametrize(("before", "now"), [(1, 1), (1, 2), (2, 1), (4, 1), (1, 8), (8, 2)])
def test_updates_weigh_alike_whatever_processes_made_them(before: int, now: int) -> None:
    """The first line after a resume on other processes once weighed an update of one process four times as much as one
    of four."""
    first, second = Share(0, before, ACCUMULATE), Share(0, now, ACCUMULATE)
    saved, sums = Sums(), Sums()
    update(saved, 1, first)
    sums.load(saved.values, torch.device("cpu"))
    sums.reshare(first, second)
    update(sums, 2, second)
    found = sums.figures(Accelerator(cpu=True))
    assert found["loss"] == pytest.approx(3.0) and found["grad_norm"] == pytest.approx(3.0)
    assert found["token_accuracy"] == pytest.approx((20 + 60) / 160)
