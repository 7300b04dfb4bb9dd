"""Samples about ledgers: a picture, a question, the steps to its answer, as one of several tasks tells them.

Place in the pipeline: ledger, question, picture -> `Sample` -> collate -> model.

    words   each step a sentence of 10 to 25 tokens
    terse   each step is what it finds: a name or a number
    short   as terse, without the last step: what it finds is the answer, which follows anyway
    read    "Read the table.", answered by its rows in random order; each has to be found by its name
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from lrkit.contract.sample import Sample
from lrkit.data.ledger.ledger_picture import TYPEFACES, UNSEEN_TYPEFACES, Box, draw_ledger_picture
from lrkit.data.ledger.ledger_questions import LENGTHS, Asked, draw_question
from lrkit.data.ledger.ledger_rows import MAX_ROWS, Ledger, draw_ledger
from lrkit.data.looks import LABEL, Look
from lrkit.data.scans import Split

Task = Literal["words", "terse", "short", "read"]
TASKS: tuple[Task, ...] = get_args(Task)
LedgerKind = Literal["main", "typefaces", "tall"]
"""main: as in training; typefaces: in those that no training sees; tall: with more rows than in training."""
KINDS: tuple[LedgerKind, ...] = get_args(LedgerKind)
TOKEN_LABEL = "token_words"
"""Of `Sample.info`: class of each visual token."""
ROWS = (4, 5, 6)
_TALL = (7, MAX_ROWS)
MOST = 20
"""Largest number in a ledger."""


def sample_ledger(kind: LedgerKind, split: Split, task: Task, length: int, rng: np.random.Generator) -> Sample:
    """A ledger and a question of `length` steps about it, told as `task` says; `read` has no length.

    `info` holds kind, split, task, question's kind, hops (the length), looks (which cells each step reads) and
    token_words ((visual tokens,) int64).
    """
    # A path of so many steps needs as many rows.
    rows = [number for number in (_TALL if kind == "tall" else ROWS) if task == "read" or number >= length]
    ledger = draw_ledger(rng, rows, MOST)
    asked = None if task == "read" else draw_question(ledger, length, rng)
    drawn = draw_ledger_picture(ledger, split, rng, UNSEEN_TYPEFACES if kind == "typefaces" else TYPEFACES)
    info: dict[str, Any] = {"kind": kind, "split": split, "task": task, TOKEN_LABEL: drawn.labels, "hops": 0}
    if asked is None:
        return Sample((drawn.picture,), "Read the table.", (), _reading(ledger, rng), info=info)
    steps = asked.steps[:-1] if task == "short" else asked.steps
    info |= {"asked": asked.kind, "hops": length, LABEL: _looks(asked, drawn.boxes)[: len(steps)]}
    said = tuple(step.said if task == "words" else step.result for step in steps)
    return Sample((drawn.picture,), asked.question, said, asked.steps[-1].result, info=info)


def ledger_set(
    kind: LedgerKind, split: Split, count: int, seed: int = 0, lengths: Sequence[int] = LENGTHS, task: Task = "words"
) -> list[Sample]:
    """A fixed set of `count` samples; the lengths take turns. The first samples of a larger set are those of a smaller
    one, and do not depend on the task."""
    made: list[Sample] = []
    for index in range(count):
        rng = np.random.default_rng([seed, KINDS.index(kind), index])
        sample = sample_ledger(kind, split, task, lengths[index % len(lengths)], rng)
        name = f"{kind}-{split}-{seed}-{index}"
        made.append(Sample(sample.images, sample.question, sample.steps, sample.answer, name, sample.info))
    return made


def _reading(ledger: Ledger, rng: np.random.Generator) -> str:
    """All rows, in random order."""
    rows = list(zip(ledger.names, ledger.next_rows, *ledger.numbers, strict=True))
    told = (rows[index] for index in rng.permutation(len(rows)).tolist())
    return "; ".join(f"{name} {ledger.names[after]} {' '.join(map(str, rest))}" for name, after, *rest in told)


def _looks(asked: Asked, boxes: dict[tuple[int, int], Box]) -> tuple[tuple[Look, ...], ...]:
    """The cell that each step reads; none where it computes."""
    return tuple(() if step.cell is None else ((0, boxes[step.cell]),) for step in asked.steps)
