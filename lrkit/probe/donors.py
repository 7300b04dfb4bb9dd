"""Which question gives its latents to which. Torch-free.

Trails: another trail of as many hops through the same picture. Other data: another question of the set with another
right answer, about the same picture where there is one, that took as many latent steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrkit.contract.sample import Sample
from lrkit.contract.scoring import answers_match
from lrkit.data.trail_changed import is_trail, other_trail
from lrkit.probe.asking import Questions, State, Told


@dataclass(frozen=True)
class Donor:
    """Whose latents a question gets."""

    states: Sequence[State]
    answer: str | None
    """What the model itself answers to the donor."""
    same_picture: bool


def find_donors(questions: Questions, told: Mapping[int, Told], seed: int) -> dict[int, Donor]:
    """Number of a question -> its donor; questions without latent steps, or without a donor of as many, are left
    out. Donors of trails are asked for it."""
    if all(is_trail(sample) for sample in questions.samples):
        return _of_trails(questions, told, seed)
    return _of_the_set(questions.samples, told, seed)


def _of_trails(questions: Questions, told: Mapping[int, Told], seed: int) -> dict[int, Donor]:
    thinking = [number for number, one in told.items() if one.steps]
    others = {
        number: other_trail(questions.samples[number], np.random.default_rng([seed, number])) for number in thinking
    }
    kept = {number: other for number, other in others.items() if other is not None}
    answers = questions.of(list(kept.values())).ask("donors")
    pairs = zip(kept, answers.values(), strict=True)
    return {number: Donor(one.states, one.answer, True) for number, one in pairs if one.steps == told[number].steps}


def _of_the_set(samples: Sequence[Sample], told: Mapping[int, Told], seed: int) -> dict[int, Donor]:
    found: dict[int, Donor] = {}
    by_steps: dict[int, list[int]] = {}
    for number, one in told.items():
        by_steps.setdefault(one.steps, []).append(number)
    pictures = {number: _pictures(samples[number]) for number in told}
    for number, one in told.items():
        if not one.steps:
            continue
        others = [
            other for other in by_steps[one.steps] if not answers_match(samples[other].answer, samples[number].answer)
        ]
        same = [other for other in others if pictures[other] is not None and pictures[other] == pictures[number]]
        if others:
            chosen = same or others
            other = chosen[int(np.random.default_rng([seed, number]).integers(len(chosen)))]
            found[number] = Donor(told[other].states, told[other].answer, bool(same))
    return found


def _pictures(sample: Sample) -> tuple[str, ...] | None:
    """Names of its pictures; None where they are no files, or there are none."""
    names = tuple(str(image) for image in sample.images if isinstance(image, str) or hasattr(image, "__fspath__"))
    return names if names and len(names) == len(sample.images) else None
