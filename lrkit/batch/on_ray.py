"""Shards on Ray Data: a pool of actors, each with the model in its memory and `threads` cores. Torch-free.

Place in the pipeline: `answer_lines` -> `shards_on_ray` -> `map_batches` over the shards -> actors, each a `ShardWork`.

What passes through Ray is where shards begin, and how many lines were answered: lines, pictures and answers stay on the
disk, which all machines of a cluster must see under one path. Ray starts an actor again that was killed, and gives its
shard to one; that a row is there once is not Ray's doing, but that of the files. Without RAY_ADDRESS a cluster of this
machine is started, without dashboard and without reports of usage, and ends with the work.
"""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lrkit.batch.job import Job, Shard
from lrkit.batch.shard_answers import ShardWork
from lrkit.cores import usable_cores
from lrkit.errors import LrkitError, UserError, is_write_failure, missing_extra, one_line, os_sentence, require

EXTRA = "ray"
_STORE_BYTES = 128 << 20
"""Of Ray's object store on a cluster of our own: it holds no more than where shards begin."""
_MOST_BLOCKS = 1 << 14
"""Parts of Ray's data set: a shard each, where there are no more."""
_ADDRESS = "RAY_ADDRESS"
_COLUMNS = ("number", "file", "first", "lines", "rows", "start", "sha256")


class Actor:
    """Answers shards in a process of Ray's. What goes wrong is told as a value: Ray would retry an exception, or wrap
    it in its own."""

    def __init__(self, job: Job) -> None:
        self._work = ShardWork(job, counted=True)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of shards as columns; back come their lines, and an error in words, or none."""
        rows = ({name: batch[name][nth] for name in _COLUMNS} for nth in range(len(batch["number"])))
        told = [self._done(Shard.of(row)) for row in rows]
        return {"rows": [rows for rows, _ in told], "error": [error for _, error in told]}

    def _done(self, shard: Shard) -> tuple[int, str]:
        try:
            self._work.do(shard)
            return shard.span.rows, ""
        except LrkitError as error:
            return 0, str(error)
        except Exception as error:
            missing = missing_extra(error) if isinstance(error, ImportError) else None
            if missing is None and not is_write_failure(error):
                raise
            return 0, str(missing) if missing is not None else os_sentence(error)


def shards_on_ray(job: Job, left: Sequence[Shard], workers: int | None) -> Generator[int]:
    """Has all shards answered, in whatever order; gives the lines of each when it is done.

    Raises:
        MissingExtraError: Ray is not installed.
        UserError: what a worker says is wrong, in its words; a cluster that is too small, or cannot be reached.
    """
    threads = job.model.threads or 1
    job = replace(job)  # without the files that this process has open
    with _cluster(workers, threads) as (data, pool):
        shards = data.from_items([shard.values() for shard in left], override_num_blocks=min(len(left), _MOST_BLOCKS))
        compute = data.ActorPoolStrategy(size=min(pool, len(left)), max_tasks_in_flight_per_actor=2)
        place = job.model.device or job.model.provider or "cpu"
        gpus = {"num_gpus": 1} if place.startswith(("cuda", "tensorrt")) else {}
        done = shards.map_batches(
            Actor, fn_constructor_args=(job,), batch_size=1, compute=compute, num_cpus=threads, **gpus
        )
        with _told():
            for row in done.iter_rows():
                if row["error"]:
                    raise UserError(str(row["error"]))
                yield int(row["rows"])


@contextmanager
def _cluster(workers: int | None, threads: int) -> Generator[tuple[Any, int]]:
    """(ray.data, number of workers), on the cluster of RAY_ADDRESS or on one of our own. It ends with the context."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of it for each worker
    own = _ADDRESS not in os.environ
    with _own_sigterm():
        ray, data = require("ray", EXTRA), require("ray.data", EXTRA)
        pool = workers or max(1, usable_cores() // threads)
        given = {
            "address": "local",
            "num_cpus": pool * threads,
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
        }
        try:
            ray.init(**(given if own else {}), log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            where = "a cluster of this machine" if own else f"the cluster of {_ADDRESS}"
            raise UserError(
                f"{where} cannot be {'started' if own else 'reached'} ({one_line(error, 200)}); start the same command "
                f"again{'' if own else ' when it runs'}, or leave --engine ray out"
            ) from error
    try:
        _quiet(data)
        cores = int(ray.cluster_resources().get("CPU", 0))
        if not own and workers is None:
            pool = max(1, cores // threads)
        if pool * threads > cores:
            raise UserError(
                f"{pool} workers of {threads} threads need {pool * threads} cores, and the cluster has {cores}; give "
                "fewer --workers or --threads"
            )
        yield data, pool
    finally:
        ray.shutdown()


def _quiet(data: Any) -> None:
    """Ray's bars, tables and notes would run through those of lrkit."""
    for handler in logging.getLogger("ray.data").handlers:
        handler.setLevel(max(handler.level, logging.ERROR))
    with warnings.catch_warnings():  # it warns of names of its own that its constructor sets
        warnings.simplefilter("ignore", DeprecationWarning)
        context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextmanager
def _told() -> Generator[None]:
    """What Ray itself raises, as one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, LrkitError) or not type(error).__module__.startswith("ray."):
            raise
        raise UserError(
            f"Ray ended the work ({one_line(error, 200)}); start the same command again, it goes on from what is done"
        ) from error


@contextmanager
def _own_sigterm() -> Generator[None]:
    """Ray takes SIGTERM for itself when it starts, and leaves with its number; here it stays whose it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as left:
        if left.code == signal.SIGTERM and callable(before):
            before(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
