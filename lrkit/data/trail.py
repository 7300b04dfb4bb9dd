"""The embedded data set: follow handwritten signs from room to room, and say where the trail ends.

Place in the pipeline: board -> trail -> `Sample` -> collate -> model. Five tasks:

    trail  "Take 4 hops. Which room are you in? Start in room 3", with one sentence of 23 tokens per hop
    terse  the same question, where a step is the number of the next room and nothing else
    short  as terse, without the last room: that room is the answer, which follows anyway
    brief  "Take 4 hops. Which room? Start in room 3", with the steps of terse
    read   "Read the signs.", answered by all rooms in random order, each followed by the digit on its sign

Everything follows from a `numpy.random.Generator`: equal seeds give equal samples. The question ends with the
start room, so that the last token of the prompt is where the first hop begins.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from lrkit.contract.sample import Sample
from lrkit.data.board import NUM_ROOMS, Board, BoardKind, TrailSettings, draw_board
from lrkit.data.looks import LABEL, Look
from lrkit.data.scans import Split
from lrkit.errors import DataError

__all__ = ["Board", "TrailSettings", "TrailStream", "draw_board", "sample_read", "sample_trail", "trail_set"]

Task = Literal["trail", "terse", "short", "brief", "read"]

HOPS: dict[BoardKind, tuple[int, ...]] = {
    "main": (1, 2, 3, 4, 5, 6, 7, 8),
    "long": (9,),
    "faint": (1, 2, 3, 4, 5, 6, 7, 8),
    "wide": (1, 2, 3, 4, 5, 6, 7, 8),
    "woven": (1, 2, 3, 4, 5, 6, 7, 8),
}
"""Hop counts of each kind of board. On average a chain in words is then as long as those of M3CoT, about 106 tokens
(Table 1 of arXiv 2604.10500)."""
MAX_HOPS = 9
"""Longest trail: signs show ten digits, and a trail enters no room twice."""
_LARGEST_NUMBER = max(NUM_ROOMS.values()) - 1
VOCABULARY: tuple[str, ...] = (
    *("Take", "hop", "hops", ".", "Which", "room", "are", "you", "in", "?", "Start", "Read", "the", "signs"),
    *("Step", ":", "I", "am", ";", "sign", "here", "shows", ",", "so", "go", "on", "to"),
    *(str(number) for number in range(_LARGEST_NUMBER + 1)),
)
"""All words of questions, steps and answers, without the answer template and the special tokens."""
READ_WEIGHT_PATTERN = (1.0, 0.0)
"""Loss weights of a spoken reading, repeated: the answer's lead-in and the digits count, the rooms (random) do not."""


def sample_trail(
    split: Split,
    kind: BoardKind,
    hops: int,
    rng: np.random.Generator,
    settings: TrailSettings | None = None,
) -> Sample:
    """A board and a question about the trail of `hops` hops from a random room.

    No room is entered twice: a sign that led back would let a shorter trail give the right answer.
    `info` holds hops, kind, split, rooms (visited, the start first), looks (pointing.py: where each hop's sign hangs),
    scans, and per visual token token_rooms and
    token_digits ((num_visual_tokens,) int64, -1 for distractors).

    Raises:
        DataError: `hops` is not between 1 and `MAX_HOPS`.
        UnknownNameError: no such kind of board.
    """
    if not 1 <= hops <= MAX_HOPS:
        raise DataError(f"a trail of {hops} hops was asked for; allowed are 1 to {MAX_HOPS}")
    start = int(rng.integers(NUM_ROOMS.get(kind, 1)))
    rooms = [start, *(room for room in rng.permutation(10).tolist() if room != start)][: hops + 1]
    board = draw_board(split, kind, rng, settings, dict(pairwise(rooms)))
    return trail_turn(board, rooms, False, {"kind": kind, "split": split}, labels_of(board))


def trail_turn(
    board: Board, rooms: Sequence[int], goes_on: bool, info: Mapping[str, Any], labels: Mapping[str, Any] | None = None
) -> Sample:
    """A question about the trail through these rooms of a board. `goes_on`: from where the last answer ended."""
    hops, looks = len(rooms) - 1, _looks(board, rooms[:-1])
    return Sample(
        images=board.images(),
        question=trail_question(hops, None if goes_on else rooms[0]),
        steps=trail_steps(rooms),
        answer=str(rooms[-1]),
        info={**info, "task": "trail", "hops": hops, "rooms": tuple(rooms), LABEL: looks, **(labels or {})},
    )


def trail_question(hops: int, start: int | None) -> str:
    """Asks where so many hops lead from a room; None: from where the last answer ended."""
    unit = "hop" if hops == 1 else "hops"
    where = "here" if start is None else f"in room {start}"
    return f"Take {hops} {unit}. Which room are you in? Start {where}"


def trail_steps(rooms: Sequence[int]) -> tuple[str, ...]:
    """A sentence for each hop through these rooms, the start first."""
    return tuple(_sentence(number, *pair) for number, pair in enumerate(pairwise(rooms), 1))


def tersely(sample: Sample) -> Sample:
    """The same trail, each step told in one word: the number of the next room.

    A curriculum can move such a step into a latent at once: what the model was about to say, it thinks.
    """
    rooms = sample.info["rooms"]
    return replace(sample, steps=tuple(str(room) for room in rooms[1:]), info={**sample.info, "task": "terse"})


def shortly(sample: Sample) -> Sample:
    """The same trail, each step but the last told in one word; one hop takes no step at all.

    The hidden state at a room's number holds the next room, so the answer can be read where the last step would begin.
    """
    told = tersely(sample)
    return replace(told, steps=told.steps[:-1], info={**told.info, "task": "short"})


def in_brief(sample: Sample) -> Sample:
    """The same trail told tersely, under a question of its own.

    For pretraining: a room's number leads to the number on its sign, one token after the other, while the question
    itself stays free for explicit steps.
    """
    told = tersely(sample)
    question = sample.question.replace("Which room are you in?", "Which room?")
    return replace(told, question=question, info={**told.info, "task": "brief"})


def sample_read(
    split: Split, kind: BoardKind, rng: np.random.Generator, settings: TrailSettings | None = None
) -> Sample:
    """A board, and all its signs to read; `info["weight_pattern"]` keeps the random order of rooms out of the loss."""
    board = draw_board(split, kind, rng, settings)
    signs = board.next_room
    order = rng.permutation(len(signs)).tolist()
    info = {"kind": kind, "split": split, "task": "read", "hops": 0, "weight_pattern": READ_WEIGHT_PATTERN}
    return Sample(
        images=board.images(),
        question="Read the signs.",
        steps=(),
        answer=" ".join(f"{room} {signs[room]}" for room in order),
        info={**info, **labels_of(board)},
    )


def _as_it_is(sample: Sample) -> Sample:
    return sample


RETOLD: Mapping[Task, Callable[[Sample], Sample]] = {
    "trail": _as_it_is, "terse": tersely, "short": shortly, "brief": in_brief,
}  # fmt: skip
"""Task -> how a trail is told; `read` is none."""


class TrailStream:
    """Samples without end; each draw goes on where the last one stopped."""

    def __init__(self, split: Split, seed: int, settings: TrailSettings | None = None) -> None:
        self.split: Split = split
        self.settings = settings or TrailSettings()
        self.rng = np.random.default_rng(seed)

    def draw(
        self, count: int, *, kind: BoardKind = "main", task: Task = "trail", hops: int | Sequence[int] | None = None
    ) -> list[Sample]:
        """`count` samples; `hops` is one length for all, or lengths to choose from (default: those of `kind`)."""
        if task == "read":
            return [sample_read(self.split, kind, self.rng, self.settings) for _ in range(count)]
        lengths = [hops] if isinstance(hops, int) else list(hops or HOPS[kind])
        chosen = self.rng.choice(lengths, count).tolist()
        samples = [sample_trail(self.split, kind, length, self.rng, self.settings) for length in chosen]
        return [RETOLD[task](sample) for sample in samples]

    def __iter__(self) -> Iterator[Sample]:
        """Trails on main boards, one by one."""
        while True:
            yield from self.draw(1)


def trail_set(
    kind: BoardKind,
    split: Split,
    count: int,
    seed: int = 0,
    hops: Sequence[int] | None = None,
    settings: TrailSettings | None = None,
) -> list[Sample]:
    """A fixed evaluation set of `count` samples; the lengths take turns, so that each is asked equally often.

    The first samples of a larger set are the samples of a smaller one.
    """
    lengths = tuple(hops or HOPS[kind])
    samples: list[Sample] = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        sample = sample_trail(split, kind, lengths[index % len(lengths)], rng, settings)
        name = f"{kind}-{split}-{seed}-{index}"
        samples.append(Sample(sample.images, sample.question, sample.steps, sample.answer, name, sample.info))
    return samples


def _sentence(step: int, room: int, sign: int) -> str:
    return f"Step {step}: I am in room {room}; the sign here shows {sign}, so I go on to room {sign}."


def _looks(board: Board, rooms: Sequence[int]) -> tuple[tuple[Look, ...], ...]:
    """What each step looks at: the room whose sign it follows."""
    boxes = board.room_boxes
    return tuple((boxes[room],) for room in rooms)


def labels_of(board: Board) -> dict[str, object]:
    """What `Sample.info` says of a board."""
    return {"scans": board.scans, "token_rooms": board.token_rooms, "token_digits": board.token_digits}
