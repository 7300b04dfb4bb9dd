"""Conversations about one board of the embedded data: a trail, and follow-ups that go on from it or start elsewhere.

Place in the pipeline: board -> talk -> `Sample` with earlier turns -> collate -> model.

    "Take 3 hops. Which room are you in? Start in room 4"   the first question, as on trails
    "Take 2 hops. Which room are you in? Start here"        goes on where the last answer ended
    "Take 2 hops. Which room are you in? Start in room 1"   starts elsewhere

The board holds one trail of nine hops, and each turn follows a part of it. The last turn is the sample; those before
are told in its context.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from lrkit.contract.sample import Earlier, Sample
from lrkit.data.board import NUM_ROOMS, BoardKind, TrailSettings, draw_board
from lrkit.data.scans import Split
from lrkit.data.trail import MAX_HOPS, labels_of, trail_turn
from lrkit.errors import DataError

MAX_TURNS = 8
"""Questions of a conversation."""
_HERE = 0.5
"""Share of follow-ups that go on from the last answer, where they can."""
Retold = Callable[[Sample], Sample]


def sample_talk(
    split: Split,
    kind: BoardKind,
    hops: int,
    turns: int,
    rng: np.random.Generator,
    settings: TrailSettings | None = None,
    retold: Retold = lambda sample: sample,
) -> Sample:
    """A conversation of `turns` questions about a board, whose last follows `hops` hops. `retold` tells the steps of
    each turn, as `tersely` does.

    Raises:
        DataError: `hops` is not between 1 and `MAX_HOPS`, or `turns` not between 1 and `MAX_TURNS`.
    """
    if not 1 <= hops <= MAX_HOPS or not 1 <= turns <= MAX_TURNS:
        raise DataError(
            f"a conversation of {turns} turns with {hops} hops in the last was asked for; allowed are 1 to {MAX_TURNS} "
            f"turns and 1 to {MAX_HOPS} hops"
        )
    start = int(rng.integers(NUM_ROOMS.get(kind, 1)))
    rooms = [start, *(room for room in rng.permutation(10).tolist() if room != start)][: MAX_HOPS + 1]
    board = draw_board(split, kind, rng, settings, dict(pairwise(rooms)))
    told = [
        retold(trail_turn(board, rooms[first : last + 1], goes_on, {"kind": kind, "split": split}))
        for first, last, goes_on in _legs(hops, turns, len(rooms) - 1, rng)
    ]
    *before, sample = told
    earlier = tuple(Earlier(turn.question, turn.steps, turn.answer) for turn in before)
    info = {**sample.info, "turns": turns, **labels_of(board)}
    return Sample(board.images(), sample.question, sample.steps, sample.answer, info=info, earlier=earlier)


def _legs(hops: int, turns: int, most: int, rng: np.random.Generator) -> list[tuple[int, int, bool]]:
    """(first room, last room, whether it goes on from the turn before) of each turn, as indices into the trail; drawn
    from the last turn backwards, so that its length is free."""
    first = int(rng.integers(0, most - hops + 1))
    legs: list[tuple[int, int, bool]] = []
    last = first + hops
    for left in range(turns - 1, -1, -1):
        goes_on = left > 0 and first > 0 and rng.random() < _HERE
        legs.insert(0, (first, last, goes_on))
        last = first if goes_on else int(rng.integers(1, most + 1))
        first = int(rng.integers(0, last))
    return legs
