"""What a scene is worth on the embedded boards: the time of a second question, and how many follow-ups are right.

    python benchmarks/scenes.py tiny
    python benchmarks/scenes.py tiny runs/trail-follow-up --count 200

Each board of the test split is looked at once and asked a first question, then a follow-up that starts in a room it
names, or one that goes on where the model's own last answer ended. Times are medians of interleaved rounds: the first
question about a board, looking included; another question about the same board; a whole prompt by `Reasoner.ask`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lrkit import Reasoner, Sample
from lrkit.contract.scoring import answers_match
from lrkit.data.trail_talk import sample_talk
from lrkit.provenance import collect

LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8)


def conversations(count: int) -> list[Sample]:
    """Of two turns, on boards of the test split; lengths of the last turn take turns."""
    draws = (np.random.default_rng([7, number]) for number in range(count))
    return [sample_talk("test", "main", LENGTHS[n % len(LENGTHS)], 2, rng) for n, rng in enumerate(draws)]


def accuracy(reasoner: Reasoner, samples: list[Sample]) -> dict[str, list[bool]]:
    """Kind of question -> which answers were right."""
    found: dict[str, list[bool]] = {"first": [], "follow-up, start named": [], "follow-up, start here": []}
    for sample in samples:
        (before,) = sample.earlier
        scene = reasoner.look(sample.images)
        found["first"].append(right(scene.ask(before.question).answer, before.answer))
        kind = "follow-up, start here" if sample.question.endswith("here") else "follow-up, start named"
        found[kind].append(right(scene.follow_up(sample.question).answer, sample.answer))
    return found


def right(answer: str | None, expected: str) -> bool:
    """As the evaluation scores."""
    return answer is not None and answers_match(answer, expected)


def times(reasoner: Reasoner, samples: list[Sample]) -> dict[str, float]:
    """Medians in seconds."""
    taken: dict[str, list[float]] = {"first, with the look": [], "second": [], "whole prompt": []}
    for sample in samples:
        started = time.perf_counter()
        scene = reasoner.look(sample.images)
        scene.ask(sample.earlier[0].question)
        taken["first, with the look"].append(time.perf_counter() - started)
        for kind, ask in (("second", scene.ask), ("whole prompt", whole(reasoner, sample))):
            started = time.perf_counter()
            ask(sample.earlier[0].question)
            taken[kind].append(time.perf_counter() - started)
    return {kind: statistics.median(seconds[2:]) for kind, seconds in taken.items()}


def whole(reasoner: Reasoner, sample: Sample) -> Callable[[str], object]:
    """The ordinary way."""
    return lambda question: reasoner.ask(sample.images, question)


def report_of(model: str, samples: list[Sample]) -> dict[str, Any]:
    """The figures of one model."""
    reasoner = Reasoner.open(model)
    hits, seconds = accuracy(reasoner, samples), times(reasoner, samples)
    return {
        "model": model,
        "right": {kind: [sum(found), len(found)] for kind, found in hits.items()},
        "median_sec": seconds,
        "second_over_first": seconds["second"] / seconds["first, with the look"],
    }


def main() -> None:
    """Prints the figures of each model, and writes them to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tiny"])
    parser.add_argument("--count", type=int, default=200, help="boards")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="four boards")
    given = parser.parse_args()
    samples = conversations(4 if given.smoke else given.count)
    rows = [report_of(model, samples) for model in given.models]
    print(json.dumps(rows, indent=2))
    if given.json is not None:
        report = {"boards": len(samples), "rows": rows, "provenance": collect()}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
