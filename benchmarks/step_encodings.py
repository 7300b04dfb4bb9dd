"""What an extra pass of routed depth does to a trained model, by the size of its step encodings.

    python -m benchmarks.step_encodings
    python -m benchmarks.step_encodings --samples 40 --sizes 0 0.3 --json few.json

A checkpoint without routing gets it: every token of prompt and latents passes once more through each layer that
routes, and e(d) is set to numbers of one size with random signs. Nothing is trained. So it shows how large e(d) must be
before a pass can help or harm, and that gradient reaches the routers as soon as e(d) is not 0. Every size answers the
same pictures, which training has not seen. The JSON is the source; the Markdown beside it is rendered from it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lrkit import Reasoner
from lrkit.contract.sample import Sample
from lrkit.contract.settings import RoutingSettings
from lrkit.data.collate import collate_training
from lrkit.data.sources import load_samples
from lrkit.data.trail import shortly
from lrkit.evaluate.evaluation import EvalOptions, evaluate
from lrkit.model.routing import RoutedLayer
from lrkit.provenance import collect
from lrkit.runtime.engines.torch.engine import TorchEngine

ALL_TOKENS = 4096
"""More than any chunk has."""


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    sizes, samples = ([0.0, 0.3], 4) if args.smoke else (args.sizes, args.samples)
    report = measure(args.checkpoint, args.data, samples, sizes)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = render(report)
    args.json.with_suffix(".md").write_text(text, encoding="utf-8")
    Console(width=160).print(text, markup=False, highlight=False)


def measure(checkpoint: str, data: str, count: int, sizes: Sequence[float]) -> dict[str, Any]:
    """Every size of e(d) on the same pictures."""
    samples = load_samples(data, count)
    engine = Reasoner.from_checkpoint(checkpoint).engine
    assert isinstance(engine, TorchEngine), "a program has its routing compiled in"
    before = _answers(engine, samples)
    rows = [_row(engine, size, samples, before) for size in track(sizes, console=Console(stderr=True))]
    return {
        "schema": 1, "kind": "step-encodings", "checkpoint": checkpoint, "data": data, "split": "test",
        "samples": count, "rows": rows, "provenance": collect(),
    }  # fmt: skip


def _row(engine: TorchEngine, size: float, samples: Sequence[Sample], before: Sequence[Any]) -> dict[str, Any]:
    routed = _routed(engine, size)
    answers = _answers(routed, samples)
    right = [answer == sample.answer for answer, sample in zip(answers, samples, strict=True)]
    changed = [new != old for new, old in zip(answers, before, strict=True)]
    return {
        "size": size, "accuracy": sum(right) / len(right), "changed": sum(changed) / len(changed),
        "gradient": _gradients(routed, samples[:8]),
    }  # fmt: skip


def _routed(engine: TorchEngine, size: float) -> TorchEngine:
    """The same weights with one extra pass of all tokens, and e(d) of that size."""
    routing = RoutingSettings(depth=1, alpha=ALL_TOKENS)
    torch.manual_seed(0)
    made = engine.with_settings(engine.settings.model_copy(update={"routing": routing}))
    for layer in _layers(made):
        signs = torch.randint(2, layer.step_encoding_RD.shape) * 2 - 1
        layer.step_encoding_RD.data = size * signs.to(layer.step_encoding_RD.dtype)
    return made


def _layers(engine: TorchEngine) -> list[RoutedLayer]:
    return list(engine.reasoner.routing.values())


def _answers(engine: TorchEngine, samples: Sequence[Sample]) -> list[str | None]:
    options = EvalOptions(modes=("latent",), batch_size=100, latency_samples=0)
    return [answer.answer for answer in evaluate(Reasoner(engine), samples, options).results["latent"].answers]


def _gradients(engine: TorchEngine, samples: Sequence[Sample]) -> dict[str, float]:
    """Norms of the gradient of the loss at what routing adds, over some samples."""
    reasoner = engine.reasoner
    told = [shortly(sample) for sample in samples]
    batch = collate_training(engine.processor, told, [len(sample.steps) for sample in told], "bare")
    layers = _layers(engine)
    for layer in layers:
        layer.requires_grad_(True)
    reasoner.zero_grad()
    reasoner(batch).total.backward()
    return {
        "step_encodings": _norm([layer.step_encoding_RD for layer in layers]),
        "routers": _norm([weight for layer in layers for weight in layer.router.parameters()]),
    }


def _norm(weights: Sequence[Tensor]) -> float:
    parts = [weight.grad for weight in weights if weight.grad is not None]
    return float(torch.stack([part.norm() for part in parts]).norm()) if parts else 0.0


def render(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    made = report["provenance"]
    head = ["size of e(d)", "right", "answers changed", "gradient at e(d)", "gradient at routers"]
    rows = [
        [f"{row['size']:g}", f"{row['accuracy']:.1%}", f"{row['changed']:.1%}",
         *(f"{row['gradient'][name]:.2g}" for name in ("step_encodings", "routers"))]
        for row in report["rows"]
    ]  # fmt: skip
    lines = [
        "# What an extra pass does, by the size of its step encodings",
        "",
        f"`{report['checkpoint']}`, never trained with routing, on {report['samples']} pictures of `{report['data']}`",
        "that training has not seen; every token passes once more through each odd layer: `python -m",
        "benchmarks.step_encodings`.",
        f"torch {made['packages']['torch']}, {made['cpu']}, {made['time_utc'][:10]}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)),
    ]
    return "\n".join(lines) + "\n"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny/latent")
    parser.add_argument("--data", default="trail:main")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--sizes", nargs="+", type=float, default=[0.0, 0.014, 0.05, 0.1, 0.3, 1.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("profiles/reports/step-encodings.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
