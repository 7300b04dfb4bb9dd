"""Finds the number type that a device multiplies fastest. bfloat16 halves the bytes, but not every CPU multiplies it.

Place in the pipeline: `lrkit profile random:SHAPE` without --dtype -> `fastest_dtype` -> shapes.py; the report has the
reason.
"""

import time
from collections.abc import Callable

_ROWS, _WIDTH, _INNER = 64, 1024, 4096
"""A chunk of some tokens through a feed-forward matrix of a small backbone."""
_SECONDS = 0.3
"""Spent on each type at most."""


def fastest_dtype(device: str) -> tuple[str, str]:
    """(float32 or bfloat16, why), by timing one product of each on `device`."""
    import torch

    rates = {name: _rate(getattr(torch, name), device) for name in ("float32", "bfloat16")}
    single, half = (rate / 1e9 for rate in rates.values())
    chosen = "bfloat16" if half > single else "float32"
    shape = f"({_ROWS} x {_WIDTH}) x ({_WIDTH} x {_INNER})"
    return chosen, f"{shape} here: bfloat16 {half:.0f} GFLOP/s, float32 {single:.0f}"


def _rate(dtype: object, device: str) -> float:
    """Operations per second of the fastest try."""
    import torch

    left = torch.ones(_ROWS, _WIDTH, dtype=dtype, device=device)  # pyright: ignore
    right = torch.ones(_INNER, _WIDTH, dtype=dtype, device=device)  # pyright: ignore

    def work() -> None:
        torch.nn.functional.linear(left, right)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        work()
        return 2 * _ROWS * _WIDTH * _INNER / _fastest(work)


def _fastest(work: Callable[[], None]) -> float:
    best, ends = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < ends:
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best
