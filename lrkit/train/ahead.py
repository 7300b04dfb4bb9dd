"""Collates the next batches on threads of their own, while the model works on this one.

    Curriculum -> `Ahead` -> Trainer (lrkit/train/loop.py)

What is drawn, and in which order, is the curriculum's. One worker at a time draws the samples of a batch and takes its
place in the queue; then it decodes pictures and collates beside the others, because Pillow, numpy and the tokenizers
let other threads run meanwhile. So batches and their order are the same for any number of workers. What the trainer
saves is the state behind the batch that it took last, not behind those that wait.
"""

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lrkit.data.collate import TrainBatch
from lrkit.train.curriculum import Curriculum
from lrkit.train.loading import LoaderConfig
from lrkit.train.vision import VisionBatch


@dataclass
class _Place:
    """One place in the queue: a batch that is being made, and what became of it."""

    state: Mapping[str, Any] = field(default_factory=dict)
    """The curriculum's behind it."""
    batch: TrainBatch | VisionBatch | None = None
    error: BaseException | None = None
    done: bool = False


class _Queue:
    """The batches of one stage, made by workers in the order in which they were drawn."""

    def __init__(self, curriculum: Curriculum, index: int, workers: int, ahead: int) -> None:
        self.index = index
        self._curriculum, self._ahead = curriculum, max(workers, ahead)
        self._places: deque[_Place] = deque()
        self._change = threading.Condition()
        self._drawing = threading.Lock()
        self._stopped = False
        self._workers = [threading.Thread(target=self._work, name="lrkit-batches", daemon=True) for _ in range(workers)]
        for worker in self._workers:
            worker.start()

    def take(self) -> _Place:
        """The next batch, or what its making raised; waits for it."""
        with self._change:
            self._change.wait_for(lambda: bool(self._places) and self._places[0].done)
            place = self._places.popleft()
            self._change.notify_all()
        return place

    def stop(self) -> None:
        """Returns when all workers have ended; what waits is dropped."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while True:
            with self._drawing:
                if not self._room():
                    return
                place, draw = _Place(), None
                try:
                    draw = self._curriculum.draw(self.index)
                    place.state = self._curriculum.state()
                except BaseException as error:  # it is the trainer's: raised where the batch is taken
                    place.error = error
                with self._change:
                    self._places.append(place)
                    self._stopped = self._stopped or place.error is not None
            if draw is not None and place.error is None:
                try:
                    place.batch = self._curriculum.made(draw)
                except BaseException as error:
                    place.error = error
            with self._change:
                place.done = True
                self._stopped = self._stopped or place.error is not None
                self._change.notify_all()

    def _room(self) -> bool:
        with self._change:
            self._change.wait_for(lambda: self._stopped or len(self._places) < self._ahead)
            return not self._stopped


class Ahead:
    """The batches of a curriculum, each made before it is asked for."""

    def __init__(self, curriculum: Curriculum, loader: LoaderConfig | None = None) -> None:
        loader = LoaderConfig() if loader is None else loader
        self.workers = loader.num_workers
        """Threads that make batches; 0: they are made where they are asked for."""
        self.waited_sec = 0.0
        """Time that the trainer spent in `batch`."""
        self.tokens = 0
        """Of the batches that it took."""
        self._depth = loader.ahead
        self._curriculum = curriculum
        self._queue: _Queue | None = None
        self._state: Mapping[str, Any] = curriculum.state()

    def batch(self, index: int) -> TrainBatch | VisionBatch:
        """The next batch of stage `index`. Raises what making it raised."""
        started = time.perf_counter()
        try:
            taken = self._take(index) if self.workers else self._make(index)
            self.tokens += tokens_of(taken)
            return taken
        finally:
            self.waited_sec += time.perf_counter() - started

    def _take(self, index: int) -> TrainBatch | VisionBatch:
        if self._queue is None or self._queue.index != index:
            self.stop()
            self._queue = _Queue(self._curriculum, index, self.workers, self._depth)
        place = self._queue.take()
        if place.error is not None:
            self.stop()
            raise place.error
        assert place.batch is not None
        self._state = place.state
        return place.batch

    def _make(self, index: int) -> TrainBatch | VisionBatch:
        try:
            made = self._curriculum.batch(index)
        except BaseException:
            self._curriculum.load_state(self._state)
            raise
        self._state = self._curriculum.state()
        return made

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on behind the last batch that was taken."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Draw on from `state`."""
        self.stop()
        self._curriculum.load_state(state)
        self._state = self._curriculum.state()

    def stop(self) -> None:
        """Ends the workers; what they made ahead will be drawn again."""
        if self._queue is not None:
            self._queue.stop()
            self._queue = None
            self._curriculum.load_state(self._state)


def tokens_of(batch: TrainBatch | VisionBatch) -> int:
    """Tokens that the model reads, thinks or says of a batch, padding left out; visual tokens where it only looks."""
    if isinstance(batch, VisionBatch):
        return max((len(labels) for labels in batch.labels.values()), default=0)
    return int(batch.prompt_mask.sum() + batch.num_latents.sum() + batch.speech_mask.sum())
