"""What a run writes down: metrics.jsonl (one object per line) and TensorBoard event files with the same numbers.

A resumed run cuts both back to the saved state, so that the curve has each update once.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrkit.errors import require

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsWriter:
    """Appends records to a run folder; use as a context manager or call `close`."""

    def __init__(self, folder: Path | None, keep_bytes: int = 0, purge_update: int | None = None):
        """`keep_bytes` of an existing metrics.jsonl stay; TensorBoard hides events from `purge_update` on.

        Without a folder (all processes but the first) nothing is written.
        """
        self._file = self._board = None
        if folder is None:
            return
        tensorboard = require("torch.utils.tensorboard", "train")
        self._file = open(folder / METRICS_FILE, "ab")  # noqa: SIM115 (closed by close)
        self._file.truncate(keep_bytes)
        self._file.seek(0, os.SEEK_END)
        self._board = tensorboard.SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=purge_update)

    def write(self, kind: str, update: int, values: Mapping[str, Any]) -> None:
        """One line `{"kind", "update", ...values}`; numbers, also in nested mappings, go to TensorBoard."""
        if self._file is None or self._board is None:
            return
        line = json.dumps({"kind": kind, "update": update, **values}, allow_nan=True)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        for name, number in _numbers(values):
            self._board.add_scalar(f"{kind}/{name}", number, update)

    def num_bytes(self) -> int:
        """Length of metrics.jsonl, on disk."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Flush and close both files."""
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder, in order."""
    lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _numbers(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((prefix + name, float(value)))
    return found
