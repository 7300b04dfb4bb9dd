"""How batches are made ahead, as a recipe says it, and what the log says of it: tokens per second, time spent waiting.

    recipe `loader: {...}` -> `LoaderConfig` -> lrkit/train/ahead.py -> `Pace` -> metrics.jsonl

Torch-free.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from pydantic import Field

from lrkit.config import Config
from lrkit.cores import usable_cores

MOST_WORKERS = 8
"""Where the recipe leaves the number open."""


class LoaderConfig(Config):
    """Pictures are decoded and batches collated while the model works. Nothing here changes a batch or their order."""

    workers: int | None = Field(default=None, ge=0, le=128)
    """Threads that make batches; null: half the cores, at most 8; 0: the training thread makes them itself."""
    ahead: int = Field(default=2, ge=1, le=1024)
    """Batches that wait at most, or one per worker where that is more; a batch takes the memory of its pictures."""
    cache_bytes: int = Field(default=0, ge=0)
    """Bytes of memory for pictures as the model reads them, so that later passes do not decode them again; 0: none."""

    @property
    def num_workers(self) -> int:
        """Those of the recipe; where it leaves the number open, half the cores: the other half computes."""
        return max(1, min(MOST_WORKERS, usable_cores() // 2)) if self.workers is None else self.workers


class Batches(Protocol):
    """What `Pace` reads of lrkit/train/ahead.py; both only grow."""

    @property
    def waited_sec(self) -> float: ...
    @property
    def tokens(self) -> int: ...


class Pace:
    """How fast a run goes, between two lines of its log."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._updating_sec = 0.0
        self._tokens, self._waited_sec = batches.tokens, batches.waited_sec

    @contextmanager
    def update(self) -> Generator[None]:
        """A context of one update, from the wait for its batches to the optimizer's step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._updating_sec += time.perf_counter() - started

    def figures(self, processes: int) -> dict[str, float]:
        """Since the last call: tokens per second of updating, over so many processes that go at one pace, and the share
        of that time that was spent waiting for batches. Validation and saving do not count."""
        tokens, waited = self._batches.tokens - self._tokens, self._batches.waited_sec - self._waited_sec
        spent = max(self._updating_sec, 1e-9)
        self._tokens, self._waited_sec, self._updating_sec = self._batches.tokens, self._batches.waited_sec, 0.0
        share = round(min(1.0, waited / spent), 4)
        return {"tokens_per_second": round(tokens * processes / spent, 1), "waiting_share": share}
