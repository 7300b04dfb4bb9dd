"""The table of `lrkit ablate trail-sceptic`: latents, and what could stand in their place. tables.py shows it.

Beside the accuracy on each set stand that by length of the trail, which tells whether something can take many hops, and
the autoregressive steps that it takes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

HOPS = ((1, 2), (3, 4, 5), (6, 7, 8))
"""Lengths of trails on `main` that one column shows."""
HEAD = ("variant", "seeds", "`main`", "`faint`", *(f"{some[0]}-{some[-1]} hops" for some in HOPS), "steps")


def rows(report: dict[str, Any]) -> Iterable[Sequence[str]]:
    """One row per variant; means over its seeds, accuracies in percent."""
    for variant, sets in report["rows"].items():
        main = [run["sets"]["trail:main"] for run in report["runs"] if run["variant"] == variant]
        steps = sum(one["ar_steps_mean"] for one in main) / len(main)
        shares = (share([one["accuracy_by_steps"][str(hops)] for one in main for hops in some]) for some in HOPS)
        accuracies = (spread(sets[name]) for name in ("trail:main", "trail:faint"))
        yield variant, str(len(main)), *accuracies, *shares, f"{steps:.1f}"


def share(found: Sequence[dict[str, Any]]) -> str:
    """Percent that are right, over several counts."""
    return f"{100 * sum(one['correct'] for one in found) / sum(one['total'] for one in found):.1f}"


def spread(found: dict[str, Any]) -> str:
    """Mean, and over several seeds the standard deviation."""
    mean, stdev = 100 * found["mean"], found["stdev"]
    return f"{mean:.1f}" if stdev is None else f"{mean:.1f} +- {100 * stdev:.1f}"
