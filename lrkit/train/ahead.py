"""Collates the next batches on a thread of its own, while the model works on this one.

    Curriculum -> `Ahead` -> Trainer (lrkit/train/loop.py)

What is drawn, and in which order, is the curriculum's: the thread asks it for one batch after the other, and what the
trainer saves is the state behind the batch that it took last, not behind those that wait.
"""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrkit.data.collate import TrainBatch
from lrkit.train.curriculum import Curriculum
from lrkit.train.vision import VisionBatch

WAITING = 2
"""Batches that are held at most; the memory of a batch is that of its pictures."""


@dataclass(frozen=True)
class _Made:
    """What the thread gives: a batch and the curriculum's state behind it, or why there is none."""

    batch: TrainBatch | VisionBatch | None
    state: Mapping[str, Any]
    error: BaseException | None = None


class _Thread(threading.Thread):
    """Makes batches of one stage until it is stopped or one fails."""

    def __init__(self, curriculum: Curriculum, index: int) -> None:
        super().__init__(name="lrkit-batches", daemon=True)
        self.index = index
        self._curriculum = curriculum
        self._made: deque[_Made] = deque()
        self._change = threading.Condition()
        self._stopped = False

    def run(self) -> None:
        while self._room():
            before = self._curriculum.state()
            try:
                made = _Made(self._curriculum.batch(self.index), self._curriculum.state())
            except BaseException as error:  # it is the trainer's: raised where the batch is taken
                made = _Made(None, before, error)
            with self._change:
                self._made.append(made)
                self._change.notify_all()
            if made.error is not None:
                return

    def take(self) -> _Made:
        """The next batch, or what its making raised; waits for it."""
        with self._change:
            self._change.wait_for(lambda: bool(self._made))
            made = self._made.popleft()
            self._change.notify_all()
        return made

    def stop(self) -> None:
        """Returns when it has ended; what waits is dropped."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
        self.join()

    def _room(self) -> bool:
        with self._change:
            self._change.wait_for(lambda: self._stopped or len(self._made) < WAITING)
            return not self._stopped


class Ahead:
    """The batches of a curriculum, each made before it is asked for."""

    def __init__(self, curriculum: Curriculum) -> None:
        self._curriculum = curriculum
        self._thread: _Thread | None = None
        self._state: Mapping[str, Any] = curriculum.state()

    def batch(self, index: int) -> TrainBatch | VisionBatch:
        """The next batch of stage `index`. Raises what making it raised."""
        if self._thread is None or self._thread.index != index:
            self.stop()
            self._thread = _Thread(self._curriculum, index)
            self._thread.start()
        made = self._thread.take()
        if made.error is not None:
            self.stop()
            raise made.error
        assert made.batch is not None
        self._state = made.state
        return made.batch

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on behind the last batch that was taken."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Draw on from `state`."""
        self.stop()
        self._curriculum.load_state(state)
        self._state = self._curriculum.state()

    def stop(self) -> None:
        """Ends the thread; what it made ahead will be drawn again."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None
            self._curriculum.load_state(self._state)
