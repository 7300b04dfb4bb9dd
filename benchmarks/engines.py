"""Times the same answers by torch, the fp32 program and the int4 program, end to end, one by one.

    python benchmarks/engines.py FP32_BUNDLE INT4_BUNDLE --threads 2 --output engines.json

The bundles are exports of the shipped model (`lrkit export tiny -o FP32_BUNDLE`, `lrkit export tiny --int4 -o
INT4_BUNDLE`). Engines and modes are interleaved in turns of some questions, because an app asks one engine for a
while: alternating question by question would show each engine the other's caches. A ratio is made within each turn.
The report holds the median and the quartiles over the turns. Pictures are prepared again for every answer.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from lrkit import Reasoner
from lrkit.contract.generated import Mode
from lrkit.contract.sample import Sample
from lrkit.data.trail import trail_set
from lrkit.provenance import collect

RATIOS = {
    "torch / fp32 program, latent": ("torch latent", "fp32 latent"),
    "torch / int4 program, latent": ("torch latent", "int4 latent"),
    "in words / latent, torch": ("torch cot", "torch latent"),
    "in words / latent, fp32 program": ("fp32 cot", "fp32 latent"),
    "in words / latent, int4 program": ("int4 cot", "int4 latent"),
}
"""Name -> (what takes longer, what it is compared with)."""


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    reasoners = {
        "torch": Reasoner.from_checkpoint(args.checkpoint),
        "fp32": Reasoner.load(args.fp32, threads=args.threads),
        "int4": Reasoner.load(args.int4, threads=args.threads),
    }
    samples = trail_set("main", "test", args.questions * args.turns)
    turns = [
        measure_turn(reasoners, samples[at : at + args.questions])
        for at in track(range(0, len(samples), args.questions), "turns")
    ]
    report = {
        "schema": 1, "kind": "engines", "threads": args.threads, "turns": args.turns, "questions": args.questions,
        "milliseconds": {name: quartiles([turn[name] * 1e3 for turn in turns]) for name in turns[0]},
        "ratios": {name: quartiles([turn[a] / turn[b] for turn in turns]) for name, (a, b) in RATIOS.items()},
        "load": os.getloadavg()[0], "provenance": collect(cpus=os.cpu_count()),
    }  # fmt: skip
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    for kind in ("milliseconds", "ratios"):
        for name, (low, middle, high) in report[kind].items():
            print(f"{name}: {middle:.2f} ({low:.2f} to {high:.2f})")


def measure_turn(reasoners: dict[str, Reasoner], samples: list[Sample]) -> dict[str, float]:
    """ "engine mode" -> mean seconds of an answer, each mode on the weights made for it (`Reasoner.baseline`)."""
    modes: tuple[Mode, ...] = ("latent", "cot")
    return {
        f"{name} {mode}": mean_seconds(
            lambda sample, r=reasoner.baseline(mode), m=mode: r.ask(sample.images, sample.question, m), samples
        )
        for (name, reasoner), mode in itertools.product(reasoners.items(), modes)
    }


def mean_seconds(ask: Callable[[Sample], Any], samples: list[Sample]) -> float:
    """Of all samples, whose chains have every length equally often; the first is asked once more before, so that
    everything is loaded and warm."""
    ask(samples[0])
    started = time.perf_counter()
    for sample in samples:
        ask(sample)
    return (time.perf_counter() - started) / len(samples)


def quartiles(values: list[float]) -> list[float]:
    """[25%, median, 75%]."""
    return [float(value) for value in np.percentile(values, (25, 50, 75))]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Latency of the shipped model by engine and mode.")
    parser.add_argument("fp32", type=Path, help="bundle of the target cpu-fp32")
    parser.add_argument("int4", type=Path, help="bundle of the target cpu-int4")
    parser.add_argument("--checkpoint", default="tiny", help="what both were exported from")
    parser.add_argument("--threads", type=int, default=2, help="of each engine")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--questions", type=int, default=20, help="questions per turn")
    parser.add_argument("--output", type=Path, default=Path("engines.json"))
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs, not how fast")
    args = parser.parse_args()
    if args.smoke:
        args.turns = args.questions = args.threads = 1
    return args


if __name__ == "__main__":
    main()
