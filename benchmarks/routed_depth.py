"""Accuracy and extra passes of checkpoints that route, asked with other routing than they were trained with.

    lrkit ablate trail-depth
    python -m benchmarks.routed_depth runs/trail-depth/rds-0 runs/trail-depth/rds-1 runs/trail-depth/rds-2

Nothing is trained for what is asked: thresholds at which a token stops, no routing, all tokens of each chunk, and as
many tokens drawn at random in place of those with the greatest scores. Every setting answers the same pictures, which
training has not seen. The JSON is the source; the Markdown beside it is rendered from it.
"""

import argparse
import json
from collections.abc import Sequence
from operator import ne
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lrkit import Reasoner
from lrkit.contract.generated import Mode
from lrkit.contract.sample import Sample
from lrkit.data.sources import load_samples
from lrkit.evaluate.evaluation import EvalOptions, evaluate
from lrkit.model.routing import RoutedLayer
from lrkit.provenance import collect
from lrkit.runtime.engines.torch.engine import TorchEngine
from lrkit.summary import summarize

ALL_TOKENS = 4096
"""More than any chunk has."""


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    report = measure(args.checkpoints, args.data, args.samples, args.mode, args.thresholds, args.lengths)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = render(report)
    args.json.with_suffix(".md").write_text(text, encoding="utf-8")
    Console(width=160).print(text, markup=False, highlight=False)


def measure(
    checkpoints: Sequence[str],
    data: str,
    count: int,
    mode: Mode,
    thresholds: Sequence[float],
    lengths: Sequence[int] = (),
) -> dict[str, Any]:
    """Every way of asking, of every checkpoint on the same pictures; with `lengths`, on those of so many steps."""
    samples = [sample for sample in load_samples(data, count) if not lengths or len(sample.steps) in lengths]
    ways: dict[str, dict[str, Any]] = {
        "as trained": {},
        **{f"threshold {each:g}": {"threshold": each} for each in thresholds},
        "no routing": {"depth": 0},
        "all tokens": {"alpha": ALL_TOKENS, "alpha_end": None},
        "random tokens": {},
    }
    engines = [Reasoner.from_checkpoint(path).engine for path in checkpoints]
    rows: list[dict[str, Any]] = []
    trained: list[list[str | None]] = []
    for way, changed in track(list(ways.items()), console=Console(stderr=True)):
        asked = [_figures(_asked(engine, changed, way == "random tokens"), samples, mode) for engine in engines]
        trained = trained or [answers for _, answers in asked]
        found = [
            {**figures, "changed": sum(map(ne, answers, own)) / len(own)}
            for (figures, answers), own in zip(asked, trained, strict=True)
        ]
        rows.append({"way": way, "runs": found, **_means(found)})
    return {
        "schema": 1, "kind": "routed-depth", "checkpoints": [Path(path).name for path in checkpoints], "data": data,
        "split": "test", "samples": len(samples), "lengths": list(lengths), "mode": mode, "rows": rows,
        "provenance": collect(),
    }  # fmt: skip


def _asked(engine: Any, changed: dict[str, Any], at_random: bool) -> Reasoner:
    """The same weights with other routing."""
    assert isinstance(engine, TorchEngine), "a program has its routing compiled in"
    routing = engine.settings.routing.model_copy(update=changed)
    asked = engine.with_settings(engine.settings.model_copy(update={"routing": routing}))
    if at_random:
        for layer in asked.reasoner.routing.values():
            layer.choose = RandomChoice(layer)
    return Reasoner(asked)


class RandomChoice:
    """Takes the place of `RoutedLayer.choose`: as many real tokens, whatever their scores."""

    def __init__(self, layer: RoutedLayer) -> None:
        self._choose = layer.choose
        self._rng = torch.Generator().manual_seed(layer.layer)

    def __call__(self, score_BS: Tensor, valid_BS: Tensor) -> tuple[Tensor, Tensor]:
        return self._choose(torch.rand(score_BS.shape, generator=self._rng), valid_BS)


def _figures(reasoner: Reasoner, samples: Sequence[Sample], mode: Mode) -> tuple[dict[str, Any], list[str | None]]:
    """Accuracy and passes, and the answers themselves."""
    asked = evaluate(reasoner, samples, EvalOptions(modes=(mode,), batch_size=100, latency_samples=0))
    found = asked.to_dict()["modes"][mode]
    figures = {"accuracy": found["accuracy"], "extra_passes": sum(found["routed_depths_mean"])}
    return figures, [answer.answer for answer in asked.results[mode].answers]


def _means(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: summarize(one[name] for one in found).to_dict() for name in ("accuracy", "extra_passes", "changed")}


def render(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    made, head = report["provenance"], [
        "asked with", "right", "answers changed", "extra passes of a token an answer",
    ]  # fmt: skip
    rows = [
        [row["way"], _right(row["accuracy"]), f"{row['changed']['mean']:.1%}", f"{row['extra_passes']['mean']:.1f}"]
        for row in report["rows"]
    ]
    lines = [
        "# Checkpoints that route, asked with other routing",
        "",
        f"{', '.join(f'`{name}`' for name in report['checkpoints'])}, trained by `lrkit ablate`, on",
        f"{report['samples']} pictures of `{report['data']}` that training has not seen, in the mode {report['mode']}:",
        "`python -m benchmarks.routed_depth`. Mean in percent, and the standard deviation over seeds.",
        f"torch {made['packages']['torch']}, {made['cpu']}, {made['time_utc'][:10]}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)),
    ]
    return "\n".join(lines) + "\n"


def _right(found: dict[str, Any]) -> str:
    mean, spread = 100 * found["mean"], found["stdev"]
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} +- {100 * spread:.1f}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="run folders or checkpoints of one sweep's variant")
    parser.add_argument("--data", default="trail:main")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--mode", choices=("latent", "direct", "cot"), default="latent")
    parser.add_argument("--thresholds", nargs="*", type=float, default=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--lengths", nargs="*", type=int, default=[], help="ask those of so many steps alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("profiles/reports/trail-depth-asked.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
