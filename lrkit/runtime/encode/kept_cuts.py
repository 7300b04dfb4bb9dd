"""Pictures as they were cut, kept within a bound of bytes: what is seen again is not decoded again. Torch-free.

Place in the pipeline: `Processor` asks `KeptCuts` for each picture before it decodes one; training turns it on by the
recipe's `loader.cache_bytes`. Any number of threads may ask. What is kept is what a decoder gave, so that batches are
bit for bit the same with and without it.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrkit.families.protocols import Geometry, Size
from lrkit.pictures.input import ImageSource


@dataclass(frozen=True)
class Cut:
    """One picture, cut."""

    size: Size
    """(width, height) in pixels as given, upright."""
    patches: np.ndarray
    """As `Geometry.cut` gives them."""
    windows: np.ndarray | None
    """As `Geometry.cut_windows` gives them; None where there are none."""

    @property
    def num_bytes(self) -> int:
        return self.patches.nbytes + (0 if self.windows is None else self.windows.nbytes)


class KeptCuts:
    """The pictures that were cut last, at most `max_bytes` of them."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.found = self.missed = 0
        """Pictures that were there, and that were not."""
        self.num_bytes = 0
        """Of what is held."""
        self._held: OrderedDict[Hashable, Cut] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Cut | None:
        """What was kept of a picture; None where nothing was."""
        with self._lock:
            kept = self._held.get(key)
            if kept is None:
                self.missed += 1
            else:
                self.found += 1
                self._held.move_to_end(key)
            return kept

    def keep(self, key: Hashable, cut: Cut) -> None:
        """Keeps a picture, and lets those go that were not asked for the longest."""
        if cut.num_bytes > self.max_bytes:
            return
        for array in (cut.patches, cut.windows):
            if array is not None:
                array.setflags(write=False)
        with self._lock:
            if key not in self._held:
                self._held[key] = cut
                self.num_bytes += cut.num_bytes
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._held.popitem(last=False)[1].num_bytes


def key_of(source: ImageSource, geometry: Geometry, zoom: int) -> Hashable:
    """Equal keys, equal cuts; None for a picture that has no name, as one in memory.

    A file is known by its path, its size and when it was written.
    """
    name: Any = getattr(source, "key", None)
    if isinstance(source, Path | str):
        try:
            found = os.stat(source)
        except (OSError, ValueError):
            return None
        name = os.fspath(source), found.st_size, found.st_mtime_ns
    return None if name is None else (name, zoom, json.dumps(geometry.to_hf(), sort_keys=True, default=str))
