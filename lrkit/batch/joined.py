"""Joins the answers of all shards into one file, and sums them up on the way. Torch-free.

Place in the pipeline: shards/N.jsonl -> `join` -> answers.jsonl and `Sums` -> `figures`, as `Evaluation.to_dict`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lrkit.batch.job import Job, LineOptions, Shard
from lrkit.contract.generated import Mode
from lrkit.contract.scoring import accuracy, compare_paired
from lrkit.errors import UserError, clean
from lrkit.files import replacing

_MOST = 2**31
"""Above every count that an answer has."""
_MEANS = ("ar_steps", "latent_steps", "spoken_tokens", "replayed_tokens", "prefilled_tokens")


@dataclass
class ModeSums:
    """Of all answers in one mode."""

    answers: int = 0
    errors: int = 0
    totals: Counter[str] = field(default_factory=Counter[str])
    halting: Counter[str] = field(default_factory=Counter[str])
    latent_steps: Counter[int] = field(default_factory=Counter[int])
    resized: int = 0
    correct: bytearray = field(default_factory=bytearray)
    """A byte for each line: 1 where its answer is right. A line without an answer is wrong."""

    @property
    def right(self) -> list[bool]:
        """Of each line, as `lrkit.contract.scoring` takes it."""
        return [bool(one) for one in self.correct]

    def add(self, row: dict[str, Any]) -> None:
        """One more row."""
        self.correct.append(bool(row.get("correct")))
        if "error" in row:
            self.errors += 1
            return
        if not all(type(row[name]) is int and 0 <= row[name] < _MOST for name in _MEANS):
            raise ValueError("counts are whole numbers")
        self.answers += 1
        self.totals.update({name: row[name] for name in _MEANS})
        self.halting[row["halting"]] += 1
        self.latent_steps[row["latent_steps"]] += 1
        self.resized += len(row.get("resized", ()))

    def to_dict(self, scored: bool) -> dict[str, Any]:
        """For a JSON report; unknown is null. Latency is: lines are answered many at a time."""
        exact = accuracy(self.right if scored else ())
        means = {f"{name}_mean": self.totals[name] / self.answers if self.answers else None for name in _MEANS}
        return {
            "accuracy": exact.value,
            "accuracy_low": exact.low,
            "accuracy_high": exact.high,
            "correct": exact.correct if scored else None,
            "samples": self.answers + self.errors,
            "errors": self.errors,
            **means,
            "latent_steps_histogram": {str(steps): count for steps, count in sorted(self.latent_steps.items())},
            "pictures_resized": self.resized,
            "halting": dict(self.halting),
            "latency_sec_median": None,
        }


def join(job: Job, shards: Sequence[Shard]) -> dict[str, Any]:
    """Writes answers.jsonl out of the shards, in order, each row once; returns the figures of all.

    Raises:
        UserError: a shard's file is not there or not whole, which somebody else must have done.
        FileError: it cannot be written.
    """
    sums: dict[Mode, ModeSums] = {mode: ModeSums() for mode in job.options.modes}
    with replacing(job.answers) as staging, staging.open("wb") as whole:
        for shard in shards:
            for line in _lines_of(job, shard):
                whole.write(line)
                _add(job, shard, sums, line)
    return figures(sums, job.options.scored)


def _add(job: Job, shard: Shard, sums: dict[Mode, ModeSums], line: bytes) -> None:
    """One row to the sums of its mode."""
    try:
        row = json.loads(line)
        sums[row["mode"]].add(row)
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # a disk that lost a part, or somebody's editor
        place = clean(str(job.result(shard)))
        raise UserError(
            f"{place}: holds a row that is no answer; remove it, and start the same command again"
        ) from error


def _lines_of(job: Job, shard: Shard) -> Iterator[bytes]:
    """The rows of a shard, which must be as many as it has lines and modes."""
    place, count = job.result(shard), 0
    try:
        with place.open("rb") as stream:
            for line in stream:
                count += 1
                yield line
    except FileNotFoundError:
        pass
    wanted = shard.span.rows * len(job.options.modes)
    if count != wanted:
        raise UserError(
            f"{clean(str(place))}: has {count} rows where {wanted} belong; remove it, and start the same command again"
        )


def are_figures(found: Any, options: LineOptions) -> bool:
    """Whether a record holds figures as `figures` makes them; damaged ones are made again."""
    return _alike(found, figures({mode: ModeSums() for mode in options.modes}, options.scored))


def _alike(found: Any, like: Any) -> bool:
    if not isinstance(like, dict):
        return found is None or isinstance(found, int | float)
    if not isinstance(found, dict) or (like and found.keys() != like.keys()):  # an empty one may hold any counts
        return False
    return all(_alike(found[name], one) for name, one in like.items())


def figures(sums: dict[Mode, ModeSums], scored: bool) -> dict[str, Any]:
    """For a JSON report, with the keys of `Evaluation.to_dict`."""
    modes = {mode: each.to_dict(scored) for mode, each in sums.items()}
    paired = {
        mode: compare_paired(sums["latent"].right, each.right).to_dict()
        for mode, each in sums.items()
        if scored and mode != "latent" and "latent" in sums
    }
    steps = [modes[mode]["ar_steps_mean"] if mode in modes else None for mode in ("cot", "latent")]
    ratio = steps[0] / steps[1] if steps[0] is not None and steps[1] else None
    return {"modes": modes, "latent_minus": paired, "cot_over_latent": {"ar_steps": ratio, "latency": None}}
