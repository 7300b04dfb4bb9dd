"""Times the vision tower, which runs inside torch's prefill.

Place in the pipeline: `TorchEngine.vision_probe` -> lrkit/profile/measure/phases.py, around each measured answer.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch


class VisionProbe:
    """Seconds spent in the vision tower of a torch backbone since the last `take`."""

    def __init__(self, backbone: Any, device: str) -> None:
        self.key = id(backbone)
        self._backbone = backbone
        self._device = device
        self._seconds = 0.0

    def take(self) -> float:
        """Returns the seconds and starts again from zero."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @contextmanager
    def installed(self) -> Generator[None]:
        """Stands in front of the backbone's `encode_images` while the context lasts."""
        original: Callable[..., Any] = self._backbone.encode_images

        def timed(*arguments: Any) -> Any:
            started = self._now()
            try:
                return original(*arguments)
            finally:
                self._seconds += self._now() - started

        self._backbone.encode_images = timed
        try:
            yield
        finally:
            del self._backbone.encode_images  # the method of the class shows again

    def _now(self) -> float:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
