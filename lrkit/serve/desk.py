"""A queue with an end: so many questions are answered at once, so many wait, and the next is sent away. Torch-free.

Place in the pipeline: app.py (one event loop) -> `Desk` -> a thread that answers (answerer.py).

A program holds its thread until it has answered, so questions run in threads of their own, and the loop stays free for
those who ask how long the queue is.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from lrkit.errors import LrkitError

T = TypeVar("T")


class BusyError(LrkitError):
    """The queue is full."""


class Desk:
    """Threads that answer, and who waits for them."""

    def __init__(self, workers: int, queue: int) -> None:
        """`workers` questions at once; `queue` more may wait."""
        self.workers, self.queue = workers, queue
        self.running = self.waiting = 0
        self._free = asyncio.Semaphore(workers)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="answer")

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """A turn, waited for.

        Raises:
            BusyError: as many wait as may.
        """
        if self._free.locked() and self.waiting >= self.queue:
            raise BusyError(f"{self.running} questions are being answered and {self.waiting} wait; ask again later")
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._free.release()

    async def run(self, work: Callable[[], T]) -> T:
        """Does `work` in a thread of the desk; called in a `place`. Where the caller is cancelled, the work is waited
        for all the same: its thread is not free before."""
        job = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await _quietly(job)
            raise

    def close(self) -> None:
        """Ends the threads, once their work is done."""
        self._threads.shutdown(wait=True, cancel_futures=True)


async def _quietly(job: Awaitable[Any]) -> None:
    try:
        await job
    except Exception:
        return
