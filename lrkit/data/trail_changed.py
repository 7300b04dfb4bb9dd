"""Trails that might have been: another start on the same board, and one sign exchanged for another.

Place in the pipeline: a sample of a trail set -> `other_trail`, `with_other_sign` -> lrkit/probe. Both follow from a
`numpy.random.Generator`, as all trails do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from lrkit.contract.sample import Sample
from lrkit.data.board import NOTHING, NUM_ROOMS, draw_board
from lrkit.data.looks import LABEL
from lrkit.data.trail import trail_question, trail_steps

_OF_A_TRAIL = {"rooms", "kind", "split", "token_rooms", "token_digits", LABEL}


def is_trail(sample: Sample) -> bool:
    """Whether the sample says what its board shows, and is the first question about it."""
    return set(sample.info) >= _OF_A_TRAIL and not sample.earlier


def other_trail(sample: Sample, rng: np.random.Generator) -> Sample | None:
    """A question about the same board with as many hops, from another room to another room. None where all trails of
    that length end in one room.

    Trails that enter no room twice come first; where there is none, one that does.
    """
    rooms, signs = sample.info["rooms"], signs_of(sample.info)
    hops = len(rooms) - 1
    found = [walk(signs, start, hops) for start in range(NUM_ROOMS[sample.info["kind"]]) if start != rooms[0]]
    others = [trail for trail in found if trail[-1] != rooms[-1]]
    best = [trail for trail in others if len(set(trail)) == len(trail)] or others
    if not best:
        return None
    trail = best[int(rng.integers(len(best)))]
    return _told(sample, trail, sample.images, f"{sample.id}-from-{trail[0]}")


def with_other_sign(sample: Sample, hop: int, rng: np.random.Generator) -> Sample | None:
    """The same question about the same board but for the sign that hop number `hop` (from 1) follows. None where no
    other sign there leads to another room in the end.

    The sign is drawn by a scan of the same split, and the rest of the picture stays pixel by pixel.
    """
    info, rooms = sample.info, sample.info["rooms"]
    room, hops = rooms[hop - 1], len(rooms) - 1
    trails: dict[int, Sequence[int]] = {}
    for digit in set(range(10)) - {rooms[hop]}:
        trail = walk(signs_of(info) | {room: digit}, rooms[0], hops)
        if trail[-1] != rooms[-1]:
            trails[digit] = trail
    fresh = [digit for digit, trail in trails.items() if len(set(trail)) == len(trail)] or sorted(trails)
    if not fresh:
        return None
    digit = fresh[int(rng.integers(len(fresh)))]
    board = draw_board(info["split"], info["kind"], rng, None, {room: digit})
    (picture, place), *_ = info[LABEL][hop - 1]
    source, box = board.room_boxes[room]
    images = [image.copy() if isinstance(image, Image.Image) else image for image in sample.images]
    shown = images[picture]
    assert isinstance(shown, Image.Image), "boards are drawn as pictures"
    shown.paste(board.images()[source].crop(_whole(box)), _whole(place))
    changed = {"token_digits": np.where(info["token_rooms"] == room, digit, info["token_digits"])}
    return _told(sample, trails[digit], tuple(images), f"{sample.id}-sign-{hop}", changed)


def signs_of(info: Mapping[str, Any]) -> dict[int, int]:
    """Room -> the digit on its sign."""
    pairs = zip(info["token_rooms"].tolist(), info["token_digits"].tolist(), strict=True)
    return {room: digit for room, digit in pairs if NOTHING not in (room, digit)}


def walk(signs: Mapping[int, int], start: int, hops: int) -> tuple[int, ...]:
    """The rooms of a trail, the start first; it may enter a room twice."""
    rooms = [start]
    for _ in range(hops):
        rooms.append(signs[rooms[-1]])
    return tuple(rooms)


def _told(
    sample: Sample, rooms: Sequence[int], images: tuple[Any, ...], name: str, changed: Mapping[str, Any] | None = None
) -> Sample:
    return replace(
        sample,
        images=images,
        question=trail_question(len(rooms) - 1, rooms[0]),
        steps=trail_steps(rooms),
        answer=str(rooms[-1]),
        id=name,
        info={**sample.info, **(changed or {}), "rooms": tuple(rooms)},
    )


def _whole(box: Sequence[float]) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(side) for side in box)
    return left, top, right, bottom
