"""Ledgers as a data set: drawn without end for training, in fixed sets for evaluation.

Place in the pipeline: sources.py's table -> `LedgerData` -> `LedgerSource` -> curriculum -> batches.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, cast

import numpy as np

from lrkit import __version__
from lrkit.contract.sample import Sample
from lrkit.data.drawn import MANY, DrawnSource, heaviest, kind_of_set, readout_problems
from lrkit.data.ledger.ledger_questions import LENGTHS
from lrkit.data.ledger.ledger_samples import KINDS, TASKS, TOKEN_LABEL, LedgerKind, Task, ledger_set, sample_ledger
from lrkit.data.ledger.ledger_words import LABELS
from lrkit.data.scans import Split
from lrkit.data.sources import DataSource, Plan, choose, task_problems
from lrkit.runtime.encode.processor import Processor


class LedgerData(DataSource):
    """Rendered tables. Every batch draws new ones."""

    kind: Literal["ledger"]
    """Tables with names and numbers, printed and handwritten."""

    points: ClassVar[bool] = True
    drawn: ClassVar[str] = "the ledgers, which take packages of the extras train and analyze to draw"

    @classmethod
    def sets(cls) -> tuple[str, ...]:
        return tuple(f"ledger:{kind}" for kind in KINDS)

    @classmethod
    def samples(cls, name: str, count: int | None, split: Split, seed: int) -> list[Sample]:
        kind = cast(LedgerKind, kind_of_set(name, cls.sets()))
        return ledger_set(kind, split, MANY if count is None else count, seed)

    def open(self, seed: int, stages: Sequence[Plan]) -> "LedgerSource":
        return LedgerSource()

    def label_words(self, label: str) -> tuple[str, ...] | None:
        return LABELS if label == TOKEN_LABEL else None

    def stage_problems(self, stage: Plan) -> Iterator[str]:
        if stage.epochs is not None:
            yield "epochs count lines of a file; give updates for ledgers, which are drawn without end"
        if stage.boards:
            yield "boards are those of trails; remove them"
        if any(length not in LENGTHS for length in stage.lengths):
            yield f"lengths {list(stage.lengths)} are not all possible; a question about a ledger has 1 to 6 steps"
        yield from task_problems(stage, TASKS)
        yield from readout_problems(stage, {TOKEN_LABEL: len(LABELS)})

    def try_out(self, stages: Sequence[Plan], seed: int, processor: Processor | None) -> None:
        rng = np.random.default_rng(seed)
        for sample in (sample for stage in stages for sample in LedgerSource().draw(stage, 4, rng)):
            if processor is not None:
                processor.encode_prompt(sample.images, sample.question)
                processor.encode_speech(sample.steps, sample.answer)


class LedgerSource(DrawnSource):
    """Ledgers without end."""

    def draw(self, stage: Plan, count: int, rng: np.random.Generator) -> list[Sample]:
        """One task for the batch; lengths are mixed in it, or one for all."""
        task = choose(_tasks(stage), rng)
        lengths = stage.lengths or LENGTHS
        weights = dict(zip(lengths, stage.length_weights or (1.0,) * len(lengths), strict=True))
        same = choose(weights, rng) if stage.batches == "equal" else None
        return [sample_ledger("main", "train", task, same or choose(weights, rng), rng) for _ in range(count)]

    def validation(self, stage: Plan, count: int) -> dict[int, list[Sample]]:
        task = heaviest(_tasks(stage))
        told: Task = "words" if task == "read" else task
        return {n: ledger_set("main", "val", count, 0, (n,), told) for n in sorted(set(stage.lengths or LENGTHS))}

    def held_out(self, stage: Plan, count: int) -> list[Sample]:
        rng, task = np.random.default_rng(0), heaviest(_tasks(stage))
        return [sample_ledger("main", "val", task, LENGTHS[index % len(LENGTHS)], rng) for index in range(count)]

    def digest(self) -> str:
        return hashlib.sha256(f"ledger {__version__}".encode()).hexdigest()


def _tasks(stage: Plan) -> dict[Task, float]:
    """What a stage draws, once `stage_problems` found nothing."""
    return {cast(Task, name): weight for name, weight in stage.tasks.items()} or {"words": 1.0}
