"""Accuracy of a trained checkpoint whose visual tokens are pruned when it is asked, with and without replay.

    python benchmarks/pruning.py
    python benchmarks/pruning.py --samples 200 --layers 0 --keep 0.25 --json few.json

Nothing is trained for the pruning. Every setting answers the same pictures, which training has not seen, in batches.
What time it saves depends on the size of the model: `lrkit sweep random:SHAPE prune_after=2 prune_keep=0.25,0.5,1`.
The JSON is the source; the Markdown beside it is rendered from it.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from lrkit import Reasoner
from lrkit.contract.sample import Sample
from lrkit.contract.settings import PruneSettings
from lrkit.data.sources import load_samples
from lrkit.evaluate.evaluation import EvalOptions, evaluate
from lrkit.provenance import collect


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    report = measure(args.checkpoint, args.data, args.samples, args.layers, args.keep, args.replay)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = render(report)
    args.json.with_suffix(".md").write_text(text, encoding="utf-8")
    Console(width=160).print(text, markup=False, highlight=False)


def measure(
    checkpoint: str,
    data: Sequence[str],
    count: int,
    layers: Sequence[int],
    keep: Sequence[float],
    replay: Sequence[int],
) -> dict[str, Any]:
    """Every setting on every set of pictures."""
    reasoner = Reasoner.from_checkpoint(checkpoint)
    sets = {name: load_samples(name, count) for name in data}
    rows = [
        {**asked, "sets": {name: _figures(one, samples) for name, samples in sets.items()}}
        for asked, one in track(list(_settings(reasoner, layers, keep, replay)), console=Console(stderr=True))
    ]
    return {
        "schema": 1, "kind": "pruning", "checkpoint": checkpoint, "split": "test", "samples": count,
        "layers": reasoner.engine.num_layers, "rows": rows, "provenance": collect(),
    }  # fmt: skip


def _settings(
    reasoner: Reasoner, layers: Sequence[int], keep: Sequence[float], replay: Sequence[int]
) -> Iterator[tuple[dict[str, Any], Reasoner]]:
    """What is asked for, and who answers so; nothing pruned first."""
    engine = reasoner.engine
    for tokens in replay:
        for layer, share in [(None, 1.0), *((layer, share) for layer in layers for share in keep)]:
            changed = {
                "replay": engine.settings.replay.model_copy(update={"num_tokens": tokens}),
                "prune": PruneSettings(after_layer=layer, keep=share),
            }
            settings = engine.settings.model_copy(update=changed)
            asked = {"replay_tokens": tokens, "after_layer": layer, "keep": share}
            yield asked, Reasoner(engine.with_settings(settings))


def _figures(reasoner: Reasoner, samples: Sequence[Sample]) -> dict[str, Any]:
    options = EvalOptions(modes=("latent",), batch_size=100, latency_samples=0)
    found = evaluate(reasoner, samples, options).to_dict()["modes"]["latent"]
    names = ("accuracy", "accuracy_low", "accuracy_high", "latent_steps_mean", "prefilled_tokens_mean")
    return {name: found[name] for name in names}


def render(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    made, sets = report["provenance"], list(report["rows"][0]["sets"])
    head = ["replayed a step", "pruned behind layer", "stay", *(f"`{name}`, right" for name in sets), "latent steps"]
    rows = [
        [
            str(row["replay_tokens"]), "-" if row["after_layer"] is None else str(row["after_layer"]),
            f"{row['keep']:.1%}", *(_right(row["sets"][name]) for name in sets),
            f"{row['sets'][sets[0]]['latent_steps_mean']:.2f}",
        ]
        for row in report["rows"]
    ]  # fmt: skip
    lines = [
        "# Visual tokens pruned when a checkpoint is asked",
        "",
        f"`{report['checkpoint']}` ({report['layers']} layers) on {report['samples']} pictures of each set that",
        "training has not seen, with 95% intervals: `python benchmarks/pruning.py`. Nothing was trained for the",
        "pruning. The JSON beside this file is the source.",
        f"torch {made['packages']['torch']}, {made['cpu']}, {made['time_utc'][:10]}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)),
    ]
    return "\n".join(lines) + "\n"


def _right(found: dict[str, Any]) -> str:
    return f"{found['accuracy']:.1%} ({100 * found['accuracy_low']:.1f}-{100 * found['accuracy_high']:.1f})"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--data", nargs="+", default=["trail:main", "trail:faint"])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--layers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.75, 0.5, 0.25, 0.125])
    parser.add_argument("--replay", nargs="+", type=int, default=[0, 1, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("profiles/reports/pruning.json"))
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs")
    args = parser.parse_args()
    if args.smoke:
        args.samples, args.data = 8, args.data[:1]
        args.layers, args.keep, args.replay = [0], [0.25], [1]
    return args


if __name__ == "__main__":
    main()
