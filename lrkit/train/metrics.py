"""What a run writes down: metrics.jsonl (one object per line) and a TensorBoard event file with the same numbers.

A resumed run cuts both back to the saved state, so that the curve has each update once. Both files are written in this
thread, without a buffer. So a full disk is noticed where it happens, and leaves no half line.
"""

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from errno import EINVAL, ENOTSUP
from pathlib import Path
from typing import Any

from lrkit.errors import DataError, FileError, os_sentence, require
from lrkit.files import parse_json, read_text
from lrkit.train.trackers import Tracker

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsWriter:
    """Appends records to a run folder; use as a context manager or call `close`."""

    def __init__(self, folder: Path | None, keep_bytes: int = 0, purge_update: int | None = None):
        """`keep_bytes` of an existing metrics.jsonl stay; TensorBoard hides events from `purge_update` on.

        Without a folder (all processes but the first) nothing is written.

        Raises:
            FileError: a file cannot be written.
        """
        self.trackers: list[Tracker] = []
        """Those that get the same numbers; `close` finishes them."""
        self.note = ""
        """What became of a metrics.jsonl that is not the one which the run left; empty where it is."""
        self._lines = self._events = None
        if folder is None:
            return
        self._lines = _Appender(folder / METRICS_FILE)
        self.note = self._lines.cut_back(keep_bytes)
        self._events = _EventFile(folder / TENSORBOARD_FOLDER, purge_update)

    def write(self, kind: str, update: int, values: Mapping[str, Any]) -> None:
        """One line `{"kind", "update", ...values}`; numbers, also in nested mappings, go to TensorBoard.

        A number that is not finite is null in the line, as JSON has no other word for it.

        Raises:
            FileError: a file cannot be written; no half line stays.
        """
        if self._lines is None or self._events is None:
            return
        line = json.dumps(_finite({"kind": kind, "update": update, **values}), allow_nan=False)
        self._lines.append(line.encode() + b"\n")
        numbers = {f"{kind}/{name}": number for name, number in _numbers(values)}
        for name, number in numbers.items():
            self._events.add(name, number, update)
        for tracker in self.trackers:
            tracker.log(numbers, update)

    def num_bytes(self) -> int:
        """Length of metrics.jsonl, on disk.

        Raises:
            FileError: it cannot be brought onto the disk.
        """
        return 0 if self._lines is None else self._lines.sync()

    def close(self) -> None:
        """Close both files, and finish the trackers."""
        for file in (self._lines, self._events):
            if file is not None:
                file.close()
        for tracker in self.trackers:
            tracker.finish()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder, in order.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    path = folder / METRICS_FILE
    lines = read_text(path, DataError, max_bytes=1 << 30).splitlines()
    return [parse_json(line, f"{path}:{number}", DataError) for number, line in enumerate(lines, 1)]


class _Appender:
    """A file that grows by whole pieces: a piece that does not fit is taken back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise FileError(os_sentence(error, path)) from error
        self._length = os.fstat(self._file.fileno()).st_size

    def cut_back(self, keep_bytes: int) -> str:
        """Keeps the first `keep_bytes`; returns a sentence where they are not all there, or no whole lines.

        A file that is shorter is another one (moved away, rotated): its whole lines stay, and it is never filled up.
        """
        found = self._length
        kept = min(found, keep_bytes)
        while kept and self._byte(kept - 1) != b"\n":
            kept -= 1
        self._shorten(kept)
        if kept == keep_bytes:
            return ""
        seen = f"is not the file that the run left ({found} bytes)" if found else "is not there"
        return (
            f"{self._path} {seen}, where {keep_bytes} bytes were written before the run stopped; the lines that are "
            "missing are not written again, and new ones follow"
        )

    def append(self, piece: bytes) -> None:
        try:
            left = memoryview(piece)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with suppress(FileError):
                self._shorten(self._length)
            raise FileError(os_sentence(error, self._path)) from error
        self._length += len(piece)

    def sync(self) -> int:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            if error.errno in (EINVAL, ENOTSUP):  # a device or a pipe, which has no place on a disk
                return self._length
            raise FileError(os_sentence(error, self._path)) from error
        return self._length

    def close(self) -> None:
        self._file.close()

    def _byte(self, place: int) -> bytes:
        self._file.seek(place)
        return self._file.read(1)

    def _shorten(self, length: int) -> None:
        try:
            if length != self._length:  # a device cannot be cut, and has nothing to cut
                self._file.truncate(length)
        except OSError as error:
            raise FileError(os_sentence(error, self._path)) from error
        self._length = length


class _EventFile:
    """Scalars in TensorBoard's format. Its own writers work in a thread, where a full disk ends in a traceback."""

    def __init__(self, folder: Path, purge_update: int | None) -> None:
        self._protos = require("tensorboard.compat.proto.event_pb2", "train")
        self._summaries = require("tensorboard.compat.proto.summary_pb2", "train")
        records = require("tensorboard.summary.writer.record_writer", "train")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(os_sentence(error, folder)) from error
        name = f"events.out.tfevents.{_after(folder):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._file = _Appender(folder / name)
        self._records = records.RecordWriter(_Sink(self._file))
        start = {} if purge_update is None else {"step": purge_update}
        self._write(file_version="brain.Event:2", **start)
        if purge_update is not None:
            # TensorBoard then forgets what earlier files have from this update on.
            log = self._protos.SessionLog(status=self._protos.SessionLog.START)
            self._write(session_log=log, step=purge_update)

    def add(self, name: str, number: float, update: int) -> None:
        value = self._summaries.Summary.Value(tag=name, simple_value=number)
        self._write(summary=self._summaries.Summary(value=[value]), step=update)

    def close(self) -> None:
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._protos.Event(wall_time=time.time(), **fields).SerializeToString())


class _Sink:
    """What TensorBoard's record writer asks of a file."""

    def __init__(self, file: _Appender) -> None:
        self.write = file.append


def _after(folder: Path) -> int:
    """The time that goes into a file's name. TensorBoard reads files by name and lets a later one cut the earlier; so
    it is later than that of all files here, also where the clock was set back."""
    names = (path.name.removeprefix("events.out.tfevents.") for path in folder.glob("events.out.tfevents.*"))
    times = [int(digits) for name in names if (digits := name.partition(".")[0]).isdecimal()]
    return max([int(time.time()), *(found + 1 for found in times)])


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _numbers(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((prefix + name, float(value)))
    return found
