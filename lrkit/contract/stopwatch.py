"""Seconds per phase of an answer: prefill, think, speak; each latent step, and until each token is out. Torch-free.

Place in the pipeline: an engine that runs an answer phase by phase (generate.py on torch,
lrkit/runtime/engines/programs/step_session.py) laps it; `Generated` carries what it found.
"""

import time
from collections.abc import Callable


class Stopwatch:
    """Laps of one answer, or of one batch."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """`now` gives the time in seconds; for a device that works on its own it waits for it first, so that a phase
        pays for its own work."""
        self._now = now
        self.seconds: dict[str, float] = {}
        self.steps: dict[str, list[float]] = {}
        self._started = self._marked = now()

    def lap(self, phase: str) -> None:
        """Ends `phase`, which began at the last lap."""
        now = self._now()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._started
        self._started = self._marked = now

    def step(self, phase: str) -> None:
        """Ends one step of `phase`, which began at its last step or at the last lap; the phase goes on."""
        now = self._now()
        self.steps.setdefault(phase, []).append(now - self._marked)
        self._marked = now
