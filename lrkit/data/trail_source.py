"""The embedded trails as a data set: drawn without end for training, in fixed sets for evaluation.

Place in the pipeline: sources.py's table -> `TrailData` -> `TrailSource` -> curriculum -> batches. All trails of a draw
are on boards of one kind, so that their prompts have one length. Their chains have one length too if the stage asks for
equal batches.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal, cast, get_args

import numpy as np
from pydantic import Field

from lrkit import __version__
from lrkit.contract.sample import Sample
from lrkit.data.board import NUM_ROOMS, BoardKind, TrailSettings
from lrkit.data.drawn import MANY, DrawnSource, heaviest, kind_of_set, readout_problems
from lrkit.data.scans import Split
from lrkit.data.sources import DataSource, Plan, choose, task_problems
from lrkit.data.trail import HOPS, MAX_HOPS, RETOLD, VOCABULARY, Task, TrailStream, trail_set
from lrkit.data.trail_talk import MAX_TURNS, Retold, sample_talk
from lrkit.runtime.encode.processor import Processor

_NUM_DRAWN = 4
_LABELS = ("token_digits", "token_rooms")


class TrailData(DataSource):
    """The embedded data set. Every batch draws new samples."""

    kind: Literal["trail"] = "trail"
    """Trails through rooms with handwritten signs."""
    boards: dict[BoardKind, Annotated[float, Field(ge=0.0)]] = {"main": 1.0}
    """Kinds of boards and how often each is drawn, relative to the others."""
    drawing: TrailSettings = TrailSettings()
    """How boards are drawn."""
    turns: int = Field(default=1, ge=1, le=MAX_TURNS)
    """Most questions of a conversation about one board; as many as drawn, from 1 on. The last is learned, with the
    earlier ones in its context."""

    points: ClassVar[bool] = True
    drawn: ClassVar[str] = "the trails, which take a package of the train extra to draw"

    @classmethod
    def sets(cls) -> tuple[str, ...]:
        return tuple(f"trail:{kind}" for kind in get_args(BoardKind))

    @classmethod
    def samples(cls, name: str, count: int | None, split: Split, seed: int) -> list[Sample]:
        kind = cast(BoardKind, kind_of_set(name, cls.sets()))
        return trail_set(kind, split, MANY if count is None else count, seed)

    def open(self, seed: int, stages: Sequence[Plan]) -> "TrailSource":
        return TrailSource(self, seed)

    def label_words(self, label: str) -> tuple[str, ...] | None:
        return tuple(str(number) for number in range(max(NUM_ROOMS.values()))) if label in _LABELS else None

    def words(self) -> tuple[str, ...]:
        return VOCABULARY

    def problems(self) -> Iterator[str]:
        if not any(self.boards.values()):
            yield "data.boards have weight 0 throughout; give at least one a positive weight"

    def stage_problems(self, stage: Plan) -> Iterator[str]:
        if stage.epochs is not None:
            yield "epochs count lines of a file; give updates for trail data, which is drawn without end"
        if self.turns > 1 and stage.batches == "equal":
            yield "batches: equal draws one length, and the turns of conversations differ; leave it out, or data.turns"
        if any(not 1 <= length <= MAX_HOPS for length in stage.lengths):
            yield f"lengths {list(stage.lengths)} are not all possible; a trail has 1 to {MAX_HOPS} hops"
        yield from task_problems(stage, get_args(Task))
        rooms = max(NUM_ROOMS[kind] for kind in stage.boards or self.boards)
        yield from readout_problems(stage, dict(zip(_LABELS, (10, rooms), strict=True)))

    def try_out(self, stages: Sequence[Plan], seed: int, processor: Processor | None) -> None:
        stream = TrailStream("train", seed, self.drawing)
        for stage in stages:
            for kind in stage.boards or self.boards:
                for task in _tasks(stage):
                    for sample in stream.draw(_NUM_DRAWN, kind=kind, task=task, hops=stage.lengths or None):
                        if processor is not None:
                            processor.encode_prompt(sample.images, sample.question)
                            processor.encode_speech(sample.steps, sample.answer)


class TrailSource(DrawnSource):
    """The embedded data set."""

    def __init__(self, data: TrailData, seed: int) -> None:
        self._data = data
        self._stream = TrailStream("train", seed, data.drawing)

    def draw(self, stage: Plan, count: int, rng: np.random.Generator) -> list[Sample]:
        self._stream.rng = rng
        kind = choose(stage.boards or self._data.boards, rng)
        task = choose(_tasks(stage), rng)
        if task == "read":
            return self._stream.draw(count, kind=kind, task=task)
        lengths = stage.lengths or HOPS[kind]
        weights = dict(zip(lengths, stage.length_weights or (1.0,) * len(lengths), strict=True))
        if self._data.turns > 1:
            chosen = [(choose(weights, rng), int(rng.integers(self._data.turns)) + 1) for _ in range(count)]
            return [self._talk("train", kind, *pair, rng, RETOLD[task]) for pair in chosen]
        if stage.batches == "equal":
            return self._stream.draw(count, kind=kind, task=task, hops=choose(weights, rng))
        return [self._stream.draw(1, kind=kind, task=task, hops=choose(weights, rng))[0] for _ in range(count)]

    def validation(self, stage: Plan, count: int) -> dict[int, list[Sample]]:
        kind = heaviest(stage.boards or self._data.boards)
        lengths = stage.lengths or HOPS[kind]
        drawing, turns = self._data.drawing, self._data.turns
        if turns > 1:
            return {
                n: [
                    self._talk("val", kind, n, turns, np.random.default_rng([0, number]), RETOLD["trail"])
                    for number in range(count)
                ]
                for n in sorted(set(lengths))
            }
        return {n: trail_set(kind, "val", count, hops=(n,), settings=drawing) for n in sorted(set(lengths))}

    def _talk(
        self, split: Split, kind: BoardKind, hops: int, turns: int, rng: np.random.Generator, retold: Retold
    ) -> Sample:
        return sample_talk(split, kind, hops, turns, rng, self._data.drawing, retold)

    def held_out(self, stage: Plan, count: int) -> list[Sample]:
        kind, task = heaviest(stage.boards or self._data.boards), heaviest(_tasks(stage, "read"))
        return TrailStream("val", 0, self._data.drawing).draw(count, kind=kind, task=task)

    def digest(self) -> str:
        # Drawn by code from the recipe's seed: the code's version and the drawing settings are the data.
        left_out = {"turns"} if self._data.turns == 1 else set[str]()
        text = f"trail {__version__} {self._data.model_dump_json(exclude=left_out)}"
        return hashlib.sha256(text.encode()).hexdigest()


def _tasks(stage: Plan, default: Task = "trail") -> dict[Task, float]:
    """What a stage draws, once `stage_problems` found nothing."""
    return {cast(Task, name): weight for name, weight in stage.tasks.items()} or {default: 1.0}
