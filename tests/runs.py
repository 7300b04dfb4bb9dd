"""Reads what training runs leave, for comparisons."""

from pathlib import Path
from typing import Any

from lrkit.train.metrics import read_metrics

PACE = {"seconds", "tokens_per_second", "waiting_share"}
"""What the clock decides of a record."""


def curve(folder: Path) -> list[dict[str, Any]]:
    """All records of a run without the clock."""
    return [{key: value for key, value in record.items() if key not in PACE} for record in read_metrics(folder)]
