"""The table of `lrkit ablate trail-depth`: what extra passes of routed tokens buy. tables.py shows it.

Beside the accuracy stand that by length of the trail, the autoregressive steps of an answer, and its extra passes: how
often a token ran through one layer once more, prompt included.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.sceptic import HOPS, share, spread

HEAD = (
    "variant", "seeds", "`main`", "each seed", *(f"{some[0]}-{some[-1]} hops" for some in HOPS), "steps", "extra passes"
)  # fmt: skip


def rows(report: dict[str, Any]) -> Iterable[Sequence[str]]:
    """One row per variant; means over its seeds, accuracies in percent."""
    for variant, sets in report["rows"].items():
        main = [run["sets"]["trail:main"] for run in report["runs"] if run["variant"] == variant]
        steps = sum(one["ar_steps_mean"] for one in main) / len(main)
        passes = sum(sum(one["routed_depths_mean"]) for one in main) / len(main)
        shares = (share([one["accuracy_by_steps"][str(hops)] for one in main for hops in some]) for some in HOPS)
        each = ", ".join(f"{100 * one['accuracy']:.1f}" for one in main)
        yield variant, str(len(main)), spread(sets["trail:main"]), each, *shares, f"{steps:.1f}", f"{passes:.0f}"
