"""What each latent says: the words that the model's head reads in it, the rank of the right room, and how far it is
from any word's embedding. Torch-free: an engine gives the head, where it can.

What latent step t starts from should name the room that t hops lead to. A program has its head inside; there the answer
that comes when thinking stops before step t is the word that step t starts from.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrkit.contract.sample import Sample
from lrkit.data.trail_changed import is_trail
from lrkit.errors import UserError
from lrkit.probe.asking import Told
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.common.protocol import WordHead
from lrkit.summary import summarize

_TOP = 5


def read_words(
    head: WordHead, processor: Processor, samples: Sequence[Sample], plain: Mapping[int, Told]
) -> dict[str, Any]:
    """Latent step -> what the head and the embeddings say of the states that it starts from."""
    rooms = _rooms(processor, samples)
    return {
        str(step): _of_step(head, processor, step, rooms, [(n, one) for n, one in plain.items() if one.steps >= step])
        for step in range(1, max((one.steps for one in plain.values()), default=0) + 1)
    }


def words_by_stopping(stopped: Mapping[int, Mapping[int, Told]], samples: Sequence[Sample]) -> dict[str, Any]:
    """The same as far as answers tell it: `stopped` has those that came after so many latent steps."""
    found: dict[str, Any] = {}
    for steps, told in sorted(stopped.items()):
        said = [one.answer or "" for one in told.values()]
        right = [one.answer == _room(samples[number], steps + 1) for number, one in told.items()]
        trail = all(is_trail(samples[number]) for number in told)
        found[str(steps + 1)] = {
            "states": len(told),
            "words": _shares(said),
            "right_room_first": sum(right) / len(right) if trail and right else None,
            "right_room_rank": None,
            "nearest_word": None,
        }
    return found


def _of_step(
    head: WordHead, processor: Processor, step: int, rooms: Mapping[int, Sequence[int]], told: list[tuple[int, Told]]
) -> dict[str, Any]:
    hidden_ND = np.stack([one.states[step - 1].hidden for _, one in told])
    logits_NW = head.logits(hidden_ND)
    nearest_N, cosine_N, distance_N = head.nearest(hidden_ND)
    words = [processor.token_text(int(word)) for word in logits_NW.argmax(1)]
    ranks = [
        1 + int((row > row[rooms[number][step]]).sum())
        for row, (number, _) in zip(logits_NW, told, strict=True)
        if number in rooms and step < len(rooms[number])
    ]
    return {
        "states": len(told),
        "words": _shares(words),
        "right_room_first": sum(rank == 1 for rank in ranks) / len(ranks) if ranks else None,
        "right_room_rank": summarize(ranks).to_dict() if ranks else None,
        "nearest_word": {
            "words": _shares([processor.token_text(int(word)) for word in nearest_N]),
            "cosine": summarize(cosine_N.tolist()).to_dict(),
            "distance": summarize(distance_N.tolist()).to_dict(),
        },
    }


def _shares(words: Sequence[str]) -> list[list[Any]]:
    """The most frequent, each with its share."""
    return [[word, count / len(words)] for word, count in Counter(words).most_common(_TOP)]


def _rooms(processor: Processor, samples: Sequence[Sample]) -> dict[int, list[int]]:
    """Question -> token of each room of its trail, the start first; questions that are no trails are left out."""
    found: dict[int, list[int]] = {}
    for number, sample in enumerate(samples):
        if is_trail(sample):
            try:
                found[number] = [_first_id(processor, str(room)) for room in sample.info["rooms"]]
            except UserError:  # a tokenizer without a token for it
                continue
    return found


def _first_id(processor: Processor, word: str) -> int:
    """The first token of a word as an answer says it."""
    return processor.encode_speech((), word)[len(processor.answer_prefix_ids)]


def _room(sample: Sample, hop: int) -> str | None:
    rooms = sample.info.get("rooms", ())
    return str(rooms[hop]) if hop < len(rooms) else None
