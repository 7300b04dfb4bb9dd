"""What a short answer costs where the whole picture is read finely, and where a small one is read first: in pairs.

Used by fine_replay.py. Both models answer the same boards one by one, turn by turn, so that a slow moment of the
machine meets both; the ratio is taken within a turn.
"""

from collections.abc import Sequence
from typing import Any

from lrkit import Reasoner, Sample
from lrkit.summary import summarize

KINDS = ("whole", "closer")


def measure(pairs: Sequence[str], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """A row for each `WHOLE,CLOSER`, which are checkpoints or bundles."""
    return [_pair(*pair.split(","), samples) for pair in pairs]


def _pair(whole: str, closer: str, samples: Sequence[Sample]) -> dict[str, Any]:
    models = {kind: Reasoner.open(name) for kind, name in zip(KINDS, (whole, closer), strict=True)}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    counted: dict[str, list[Sequence[int]]] = {kind: [] for kind in KINDS}
    for turn, sample in enumerate([*samples[:2], *samples]):
        for kind, reasoner in models.items():
            answer = reasoner.ask(sample.images, sample.question)
            if turn >= 2:  # the first two warm up
                seconds[kind].append(answer.timings["total"])
                counted[kind].append((answer.prefilled_tokens, answer.replayed_tokens, answer.latent_steps))
    ratios = summarize(b / a for a, b in zip(*(seconds[kind] for kind in KINDS), strict=True))
    engine = models["whole"].engine
    return {
        "engine": engine.name,
        "dtype": engine.dtype,
        "questions": len(samples),
        "closer_over_whole": ratios.to_dict(),
        **{kind: _figures(seconds[kind], counted[kind]) for kind in KINDS},
    }


def _figures(seconds: Sequence[float], counted: Sequence[Sequence[int]]) -> dict[str, Any]:
    names = ("prefilled_tokens", "replayed_tokens", "latent_steps")
    means = {name: summarize(values).mean for name, values in zip(names, zip(*counted, strict=True), strict=True)}
    return {"seconds": summarize(seconds).to_dict(), **means}


HEAD = (
    "engine", "whole picture, ms", "small and windows, ms", "ratio within turns", "tokens read before thinking",
    "latent steps",
)  # fmt: skip


def row_of(row: dict[str, Any]) -> list[str]:
    """The cells of `HEAD`."""
    both = [row[kind] for kind in KINDS]
    ratio = row["closer_over_whole"]
    return [
        f"{row['engine']}, {row['dtype']}", *(f"{1000 * one['seconds']['median']:.2f}" for one in both),
        f"{ratio['median']:.2f}", " / ".join(f"{one['prefilled_tokens']:.0f}" for one in both),
        " / ".join(f"{one['latent_steps']:.1f}" for one in both),
    ]  # fmt: skip
