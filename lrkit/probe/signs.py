"""One sign of the picture changed: which latents move, and does the answer? Torch-free, trails only.

Latent step t of a trail starts from a state that should know the room that t hops lead to. So another sign at hop j
should move the states of the steps from j on, and none before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrkit.contract.sample import Sample
from lrkit.contract.scoring import answers_match
from lrkit.data.trail_changed import with_other_sign
from lrkit.probe.asking import Questions, State, Told
from lrkit.probe.effects import share
from lrkit.summary import summarize


@dataclass(frozen=True)
class _Move:
    """One question with one sign changed."""

    hop: int
    distances: tuple[float, ...]
    """By latent step: length of the difference over the length of the state."""
    cosines: tuple[float, ...]
    """By latent step: 1 - cosine."""
    went: bool
    """Whether the answer is where the changed signs lead."""
    changed: bool


def change_signs(questions: Questions, plain: Mapping[int, Told], seed: int) -> dict[str, Any]:
    """For JSON: how far each latent step's state moves when the sign of a hop is another, hop by hop."""
    moves: list[_Move] = []
    hops = {number: len(questions.samples[number].info["rooms"]) - 1 for number in plain}
    for hop in range(1, max(hops.values()) + 1):
        drawn = {
            number: with_other_sign(questions.samples[number], hop, np.random.default_rng([seed, number, hop]))
            for number, count in hops.items()
            if count >= hop
        }
        kept = {number: sample for number, sample in drawn.items() if sample is not None}
        changed = list(kept.values())
        asked = questions.of(changed)
        steps = {place: plain[number].steps for place, number in enumerate(kept)}
        told = asked.ask(f"sign {hop}", steps=steps)
        moves += [_move(hop, plain[number], told[place], changed[place]) for place, number in enumerate(kept)]
    return _summary(moves)


def _move(hop: int, before: Told, after: Told, sample: Sample) -> _Move:
    pairs = list(zip(before.states, after.states, strict=False))
    went = after.answer is not None and answers_match(after.answer, sample.answer)
    return _Move(
        hop, tuple(_distance(*pair) for pair in pairs), tuple(1 - _cosine(*pair) for pair in pairs), went,
        before.answer != after.answer,
    )  # fmt: skip


def _summary(moves: Sequence[_Move]) -> dict[str, Any]:
    by_place = {name: _means(moves, name) for name in ("before", "at", "after")}
    tellable = [move for move in moves if 1 < move.hop <= len(move.distances)]
    hops = sorted({move.hop for move in moves})
    return {
        "asked": len(moves),
        "changed": share([move.changed for move in moves]),
        "followed": share([move.went for move in moves]),
        "moved": by_place,
        # The steps before a hop see the changed sign too, but should not care.
        "only_from_that_hop": share(
            [move.distances[move.hop - 1] > max(move.distances[: move.hop - 1]) for move in tellable]
        ),
        "by_hop": {
            str(hop): {
                "asked": sum(move.hop == hop for move in moves),
                "changed": share([move.changed for move in moves if move.hop == hop]),
                "followed": share([move.went for move in moves if move.hop == hop]),
                "distance_by_step": _by_step([move.distances for move in moves if move.hop == hop]),
                "cosine_distance_by_step": _by_step([move.cosines for move in moves if move.hop == hop]),
            }
            for hop in hops
        },
    }


def _means(moves: Sequence[_Move], place: str) -> dict[str, Any]:
    """Mean distances of the steps before, at and after the hop whose sign changed."""
    chosen = {
        "before": lambda step, hop: step < hop,
        "at": lambda step, hop: step == hop,
        "after": lambda step, hop: step > hop,
    }[place]
    values = {
        name: summarize(
            value for move in moves for step, value in enumerate(getattr(move, name), 1) if chosen(step, move.hop)
        )
        for name in ("distances", "cosines")
    }
    return {"states": values["distances"].count, "distance": values["distances"].mean,
            "cosine_distance": values["cosines"].mean}  # fmt: skip


def _by_step(rows: Sequence[tuple[float, ...]]) -> list[float | None]:
    longest = max(map(len, rows), default=0)
    return [summarize(row[step] for row in rows if len(row) > step).mean for step in range(longest)]


def _distance(one: State, other: State) -> float:
    length = float(np.linalg.norm(one.hidden))
    return float(np.linalg.norm(one.hidden - other.hidden)) / length if length else 0.0


def _cosine(one: State, other: State) -> float:
    lengths = float(np.linalg.norm(one.hidden)) * float(np.linalg.norm(other.hidden))
    return float(one.hidden @ other.hidden) / lengths if lengths else 1.0
