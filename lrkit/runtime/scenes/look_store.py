"""Keeps the states of scenes within a limit of bytes; the one not asked for longest goes first. Torch-free.

Place in the pipeline: a `Reasoner` has one `LookStore` -> each scene a `HeldLook` in it, which looks again where its
state is out. Several threads may share all of it.
"""

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable

from lrkit.runtime.encode.looked import Looked
from lrkit.runtime.engines.common.stopping import Stop

DEFAULT_BYTES = 512 << 20
"""Some 35 pictures of 256 visual tokens at the shape of a 2B model in bfloat16."""


class LookStore:
    """States by number, least recently used first."""

    def __init__(self, limit: int | None = None) -> None:
        """`limit` in bytes; None is `DEFAULT_BYTES`."""
        self.limit = DEFAULT_BYTES if limit is None else limit
        self._held: OrderedDict[int, Looked] = OrderedDict()
        self._lock = threading.Lock()
        self._last = 0

    @property
    def bytes(self) -> int:
        """Held now, never more than the limit."""
        with self._lock:
            return self._sum()

    def number(self) -> int:
        """A new number."""
        with self._lock:
            self._last += 1
            return self._last

    def take(self, number: int) -> Looked | None:
        """The state of that number, now the most recently used; None where it is out."""
        with self._lock:
            if (found := self._held.get(number)) is not None:
                self._held.move_to_end(number)
            return found

    def put(self, number: int, looked: Looked) -> None:
        """Keeps a state and lets older ones go. One larger than the limit is not kept."""
        with self._lock:
            self._held.pop(number, None)
            if looked.bytes > self.limit:
                return
            self._held[number] = looked
            while self._sum() > self.limit:
                self._held.popitem(last=False)

    def drop(self, number: int) -> None:
        """Lets a state go."""
        # Called by the collector of garbage, perhaps within this class in the same thread: no lock to wait for.
        self._held.pop(number, None)

    def _sum(self) -> int:
        return sum(looked.bytes for looked in list(self._held.values()))


class HeldLook:
    """The state of one scene, at hand or made again."""

    def __init__(self, store: LookStore, make: Callable[[Stop], Looked]) -> None:
        """`make` looks, or reads a file."""
        self._store, self._make = store, make
        self._number = store.number()
        self._making = threading.Lock()
        weakref.finalize(self, store.drop, self._number)

    def take(self, stop: Stop) -> tuple[Looked, float]:
        """The state, and the seconds that it took to have it; threads that ask at once make it once. Raises what
        `make` raises."""
        if (found := self._store.take(self._number)) is not None:
            return found, 0.0
        started = time.perf_counter()
        with self._making:
            found = self._store.take(self._number)
            if found is None:
                found = self._make(stop)
                self._store.put(self._number, found)
        return found, time.perf_counter() - started
