"""A process of a run that is killed, hangs or fails is noticed by the others within a minute."""

from datetime import timedelta

import pytest
from torch.distributed import HashStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lrkit.train.watch import EVERY_SEC, PATIENCE_SEC, Watch


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watches(count: int) -> tuple[list[Watch], Clock]:
    store, clock = HashStore(), Clock()
    return [Watch(store, process, count, clock) for process in range(count)], clock


def test_a_pulse_that_stands_still_is_noticed_within_a_minute() -> None:
    (first, second, third), clock = watches(3)
    for _ in range(40):
        clock.now += EVERY_SEC
        assert [one.look() for one in (first, second, third)] == [None] * 3
    looks: list[str | None] = []
    while not (looks and all(looks)):
        clock.now += EVERY_SEC
        assert clock.now < 40 * EVERY_SEC + 60 - EVERY_SEC, "the process waits once more before it ends"
        looks = [first.look(), third.look()]
    assert looks == [f"process 1 has not been heard of for {PATIENCE_SEC:.0f} seconds"] * 2


def test_a_process_that_never_came_is_noticed() -> None:
    (first, _), clock = watches(2)
    assert first.look() is None
    clock.now += PATIENCE_SEC + 1
    assert "process 1 has not been heard of" in str(first.look())


def test_one_that_failed_is_noticed_at_once_and_one_that_is_done_is_not_missed() -> None:
    (first, second, third), clock = watches(3)
    second.end(well=True)
    third.look()
    clock.now += 10 * PATIENCE_SEC
    assert first.look() is None
    third.end(well=False)
    assert first.look() == "process 2 failed"


def test_a_store_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the first process, or on its machine."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=5))
    watch = Watch(client, 1, 2)
    assert watch.look() is None
    del server
    assert watch.look() == "the one that all meet at cannot be reached"
    watch.end(well=True)  # says nothing
