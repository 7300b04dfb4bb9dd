"""Reads what training runs leave, for comparisons."""

from pathlib import Path
from typing import Any

from lrkit.train.metrics import read_metrics


def curve(folder: Path) -> list[dict[str, Any]]:
    """All records of a run without the clock."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in read_metrics(folder)]
