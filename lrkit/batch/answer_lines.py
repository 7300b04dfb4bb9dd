"""Answers all lines of files into a folder: shard by shard, by this process or on Ray, and goes on after any kill.

    answer_lines(AskedModel(model="my-bundle"), "questions.jsonl", "answered", on_ray=True, workers=2)

Place in the pipeline: `lrkit ask --data`, `lrkit eval --out` -> here -> shard_answers.py (a shard), joined.py (all).

The driver reads the files once, to cut them into shards and to name them by digest. It keeps no list of what was done:
a shard is done where its file is. So the same command goes on, whatever was killed, and every row is there once.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrkit.batch.job import AskedModel, Job, LineOptions, Shard
from lrkit.batch.joined import are_figures, join
from lrkit.batch.shard_answers import ShardWork
from lrkit.errors import UserError
from lrkit.files import check_writable, write_json
from lrkit.folders import locked

OnProgress = Callable[[int, int], None]
"""Called with the lines answered so far, and all lines."""


@dataclass(frozen=True)
class Answered:
    """What stands in the folder now."""

    folder: Path
    rows: int
    """Lines that were asked, those of earlier calls included."""
    answered_now: int
    """Lines that this call asked."""
    figures: dict[str, Any]
    """As `Evaluation.to_dict`, without times."""

    @property
    def answers(self) -> Path:
        """One JSON object per line and mode, in the order of the lines."""
        return self.folder / "answers.jsonl"


def answer_lines(
    model: AskedModel,
    data: str,
    folder: Path | str,
    options: LineOptions | None = None,
    *,
    on_ray: bool = False,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Answered:
    """Answers the lines of `data` (a JSONL or parquet file, a pattern, hub:FILE#COLUMNS) into `folder`.

    With `on_ray`, `workers` processes answer (None: one for each `model.threads` cores), on a cluster of this machine
    or the one that RAY_ADDRESS names; without, this process does. A call after a kill goes on.

    Raises:
        DataError: a file cannot be read, or a line cannot be used.
        UserError: the folder holds something else, another process works in it, or a shard ends its workers.
        MissingExtraError: `on_ray` without Ray, or parquet without pyarrow.
    """
    if workers is not None and not on_ray:
        raise UserError("workers are processes of Ray; give --engine ray, or leave workers out")
    threads = model.threads or (1 if on_ray else None)
    job = Job(Path(folder), data, replace(model, threads=threads), options or LineOptions())
    check_writable(job.folder, folder=True)
    shards = job.survey()
    identity = job.identity(shards)
    with locked(job.folder, "answers into"):
        begun = job.begin(identity)
        total = sum(shard.span.rows for shard in shards)
        if begun.get("complete") and are_figures(begun.get("figures"), job.options) and job.answers.is_file():
            job.forget()
            return Answered(job.folder, total, 0, begun["figures"])
        left = [shard for shard in shards if not job.result(shard).is_file()]
        done = total - sum(shard.span.rows for shard in left)
        with closing(_work(job, left, on_ray, workers)) as finished:
            for rows in finished:
                done += rows
                if on_progress is not None:
                    on_progress(done, total)
        found = join(job, shards)
        write_json(job.manifest, {**begun, "complete": True, "rows": total, "figures": found})
        job.forget()
    return Answered(job.folder, total, sum(shard.span.rows for shard in left), found)


def _work(job: Job, left: Sequence[Shard], on_ray: bool, workers: int | None) -> Generator[int]:
    """Does the shards that are left; gives the lines of each when it is done."""
    if on_ray and left:
        from lrkit.batch.on_ray import shards_on_ray

        yield from shards_on_ray(job, left, workers)
        return
    worker = ShardWork(job)
    for shard in left:
        worker.do(shard)
        yield shard.span.rows
