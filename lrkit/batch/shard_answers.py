"""Answers the lines of one shard, and writes them as one file at once. Torch-free where the model is a bundle.

Place in the pipeline: the one process of answer_lines.py, or an actor of on_ray.py -> `ShardWork.do` -> shards/N.jsonl.

The file takes its name when it is whole and on the disk, so a shard is answered or it is not. What it holds depends on
the job and the lines alone: whoever does a shard again, after a kill, writes the same rows.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from lrkit.batch.job import Job, LineOptions, Shard
from lrkit.contract.generated import Mode
from lrkit.contract.sample import Sample
from lrkit.errors import CapacityError, DataError, LrkitError, UserError, clean, one_line
from lrkit.evaluate.by_choice import choices_of, is_right
from lrkit.files import replacing
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.engines.programs.patience import patience_with
from lrkit.runtime.sdk import Reasoner

MOST_TRIES = 3
"""How often a shard may end the process that answers it."""
_KEPT = (
    "answer", "text", "latent_steps", "spoken_tokens", "ar_steps", "prefilled_tokens", "replayed_tokens", "halting",
)  # fmt: skip
"""Fields of `Answer` in a row. Times are none of them: they would differ when a shard is answered again."""


class ShardWork:
    """One worker: a model, loaded at its first shard."""

    def __init__(self, job: Job, counted: bool = False) -> None:
        """`counted`: how often each shard was begun is kept on the disk, as another process goes on after a kill."""
        self.job, self.counted = job, counted
        self._reasoners: dict[Mode, Reasoner] = {}

    def do(self, shard: Shard) -> int:
        """Answers a shard, unless that was done; returns how many lines of it were skipped as bad.

        Raises:
            DataError, CapacityError: a line cannot be used; its place is named.
            UserError: the shard ended several processes.
            LrkitError: the model cannot be loaded, or the answers cannot be written.
        """
        place = self.job.result(shard)
        if place.is_file():
            return 0
        if self.counted:
            self._count(shard)
        rows = list(self._rows(shard))
        with replacing(place) as staging:
            staging.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        if self.counted:
            with suppress(OSError):
                self._tries(shard).unlink(missing_ok=True)
        return sum("error" in row for row in rows)

    def _tries(self, shard: Shard) -> Any:
        return self.job.tries / f"{shard.number:07d}"

    def _count(self, shard: Shard) -> None:
        file = self._tries(shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as stream:
            if os.fstat(stream.fileno()).st_size >= MOST_TRIES:
                raise UserError(
                    f"{self.job.named(shard)}: ended its worker {MOST_TRIES} times; look for a line that takes too "
                    "much memory, give fewer --workers, or a smaller --batch-size"
                )
            stream.write(b".")

    def _rows(self, shard: Shard) -> Iterator[dict[str, Any]]:
        """The rows of a shard: of each line, one for each mode."""
        file, options = self.job.files[shard.file], self.job.options
        told = {"file": str(file.path)} if len(self.job.files) > 1 else {}
        lines = list(file.read(shard.span))
        for start in range(0, len(lines), options.batch_size):
            part = lines[start : start + options.batch_size]
            good = [(number, made) for number, made in part if not isinstance(made, DataError)]
            answers = {mode: self._answers(mode, good, shard) for mode in options.modes}
            for number, made in part:
                for mode in options.modes:
                    name, said = (None, made) if isinstance(made, DataError) else (made.id, answers[mode][number])
                    if isinstance(said, LrkitError) and not options.skip_bad:
                        raise type(said)(f"{clean(str(file.path))}:{number}: {said}") from said
                    yield {**told, "line": number, "id": name, "mode": mode, **row_of(said, made, options)}

    def _answers(
        self, mode: Mode, lines: Sequence[tuple[int, Sample]], shard: Shard
    ) -> dict[int, Answer | DataError | CapacityError]:
        """Number of a line -> its answer, or why it has none. Where a batch has none, each line is asked by itself."""
        if not lines:
            return {}
        try:
            found = self._ask(mode, [sample for _, sample in lines])
        except (DataError, CapacityError) as error:
            if len(lines) == 1:
                return {lines[0][0]: error}
            return {number: said for line in lines for number, said in self._answers(mode, [line], shard).items()}
        return {number: answer for (number, _), answer in zip(lines, found, strict=True)}

    def _ask(self, mode: Mode, samples: Sequence[Sample]) -> list[Answer]:
        options, asked = self.job.options, self._reasoner(mode)
        choices = [choices_of(sample) for sample in samples] if options.choices == "scored" else []
        return asked.ask_batch(
            [(sample.images, sample.question) for sample in samples],
            mode,
            max_new_tokens=options.max_new_tokens,
            max_latent_steps=options.max_latent_steps,
            max_pixels=options.max_pixels,
            timeout=patience_with(asked.engine, options.max_new_tokens, len(samples)),
            choices=choices if any(choices) else None,
        )

    def _reasoner(self, mode: Mode) -> Reasoner:
        if not self._reasoners:
            opened = self.job.model.open()
            self._reasoners = {each: opened.baseline(each) for each in self.job.options.modes}
        return self._reasoners[mode]


def row_of(said: Answer | LrkitError, made: Sample | DataError, options: LineOptions) -> dict[str, Any]:
    """What a row says of an answer, or of why there is none."""
    if isinstance(said, LrkitError):
        return {"error": one_line(said, 1000)}
    row: dict[str, Any] = {name: getattr(said, name) for name in _KEPT}
    if said.choice is not None:
        row["choice"] = said.choice.to_dict()
    if said.resized:
        row["resized"] = [one.to_dict() for one in said.resized]
    if options.scored and isinstance(made, Sample):
        row |= {"reference": made.answer, "correct": is_right(said, made)}
    return row
