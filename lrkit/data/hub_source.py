"""Data sets of the Hugging Face hub, which lrkit does not read: one sentence says what to do instead.

Place in the pipeline: sources.py's table -> `HubData`, for `hub:ORG/NAME`.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from lrkit.contract.sample import Sample
from lrkit.data.scans import Split
from lrkit.data.sources import DataSource, Plan, Source
from lrkit.errors import DataError

_INSTEAD = "data sets of the hub are not read; write its samples into a JSONL file and name that"


class HubData(DataSource):
    """A data set of the hub."""

    kind: Literal["hub"]
    """Refused."""
    id: str = ""
    """ORG/NAME."""

    @classmethod
    def samples(cls, name: str, count: int | None, split: Split, seed: int) -> list[Sample]:
        raise DataError(f"{name}: data sets of the hub are not read; write its samples into a JSONL file and name that")

    def open(self, seed: int, stages: Sequence[Plan]) -> Source:
        raise DataError(_INSTEAD)

    def problems(self) -> Iterator[str]:
        yield f"data.kind is hub, and {_INSTEAD}"
