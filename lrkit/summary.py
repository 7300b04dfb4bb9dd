"""Summary statistics of a list of measurements: lengths, latencies, steps. Torch-free.

Used by validation, evaluation and profiling, so that every report means the same by p90.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Statistics in the unit of the values; None where there are too few values to say."""

    count: int
    mean: float | None = None
    median: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    min: float | None = None
    max: float | None = None
    stdev: float | None = None
    """Sample standard deviation (n - 1); None below two values."""

    def to_dict(self) -> dict[str, float | int | None]:
        """For a JSON report; unknown is null."""
        return asdict(self)


def summarize(values: Iterable[float]) -> Summary:
    """Statistics of `values`; percentiles are interpolated linearly between neighbours. Empty: count 0 and None."""
    array = np.asarray(list(values), dtype=np.float64)
    if array.size == 0:
        return Summary(count=0)
    median, p90, p95, p99 = (float(value) for value in np.percentile(array, (50, 90, 95, 99)))
    return Summary(
        count=int(array.size),
        mean=float(array.mean()),
        median=median,
        p90=p90,
        p95=p95,
        p99=p99,
        min=float(array.min()),
        max=float(array.max()),
        stdev=float(array.std(ddof=1)) if array.size > 1 else None,
    )
