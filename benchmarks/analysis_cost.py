"""What an analysis costs training: the seconds of an update with one in front of it, against the updates beside it.

    OMP_NUM_THREADS=1 python -m benchmarks.analysis_cost [--recipe trail-latent] [--pairs 12] [--json FILE]

One run in this process, with a line of metrics for each update and an analysis in front of every third. A pair is an
update with an analysis and the two behind it without one, so that a slow moment of the machine meets both. The share
is of the time of a run at the recipe's own batch and the default cadence of `analyze`. Words after the options change
the recipe, as in `lrkit train`.
"""

import argparse
import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.training_step import cpu_name, spread, versions
from lrkit.resources import find_recipe
from lrkit.train.metrics import read_metrics
from lrkit.train.recipe import AnalyzeConfig, load_recipe
from lrkit.train.run import train

_EVERY = 3


def measure(recipe: str, changes: list[str], pairs: int, samples: int) -> dict[str, Any]:
    """Trains the last stage of the recipe for as many updates as the pairs take."""
    asked = load_recipe(find_recipe(recipe), changes)
    last = asked.stages[-1]
    stage = last.model_copy(update={"updates": _EVERY * (pairs + 1), "rehearsal_fraction": 0.0, "rehearse": ()})
    more = {"every": _EVERY, "samples": samples}
    values = asked.model_dump(mode="json") | {
        "stages": [stage.model_dump(mode="json")],
        "log_every": 1,
        "analyze": more,
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(load_recipe(values, ["eval.samples=0", "save_every=100000"]), run, quiet=True)
        lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    taken = {later["update"]: later["seconds"] - line["seconds"] for line, later in pairwise(lines)}
    # The update behind 3, 6, ... updates had an analysis in front of it; the first one of all also waits for caches.
    watched = [update for update in taken if update % _EVERY == 1 and update + 2 in taken]
    bare = [statistics.mean((taken[update + 1], taken[update + 2])) for update in watched]
    analyses = [max(0.0, taken[update] - beside) for update, beside in zip(watched, bare, strict=True)]
    every = AnalyzeConfig().every
    shares = [one / (one + every * beside) for one, beside in zip(analyses, bare, strict=True)]
    return {
        "recipe": recipe,
        "changes": changes,
        "stage": last.name,
        "batch_size": last.batch_size or asked.batch_size,
        "samples": samples,
        "every": every,
        "pairs": len(watched),
        "update_sec": spread(bare),
        "analysis_sec": spread(analyses),
        "share": spread(shares),
        "machine": {"cpu": cpu_name()},
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--recipe", default="trail-latent")
    parser.add_argument("--pairs", type=int, default=12, help="analyses that are timed")
    parser.add_argument("--samples", type=int, default=AnalyzeConfig().samples, help="of an analysis")
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs, not how fast")
    options = parser.parse_args()
    if options.smoke:
        options.recipe, options.pairs, options.samples, options.changes = "smoke", 2, 2, ["batch_size=1"]
    if options.pairs < 2:
        parser.error("--pairs must be 2 or more: one pair has no spread")
    report = measure(options.recipe, options.changes, options.pairs, options.samples)
    for name in ("update_sec", "analysis_sec", "share"):
        row = report[name]
        print(f"{name:13} {row['median']:.4f} ({row['quartile_low']:.4f} to {row['quartile_high']:.4f})")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
