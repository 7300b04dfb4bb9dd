"""Asks one reasoner thousands of questions, to see that its memory stays flat and that all threads get the same
answers.

    python benchmarks/soak.py BUNDLE --asks 10000 --workers 8 --output soak

Leaves soak.csv (one row per sample of the memory), soak.json (slope, spread, wrong answers) and, where matplotlib is
installed, soak.png. Pictures of different sizes are asked in random order, so that ONNX Runtime meets new shapes; each
answer must be the one that a single thread got first. The slope is that of a straight line through the memory after the
first fifth of the asks, in which caches and the allocator's arena fill. Needs /proc, that is Linux.
"""

import argparse
import csv
import json
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from lrkit import Reasoner
from lrkit.contract.sample import Sample
from lrkit.data.trail import trail_set
from lrkit.errors import CapacityError
from lrkit.provenance import collect
from lrkit.runtime.answer.answer import Answer

WARM_UP = 0.2
NUM_QUESTIONS = 48
Row = tuple[int, float, int]
"""(asks answered, seconds since the start, resident bytes)."""


def main() -> None:
    args = parse_args()
    reasoner = Reasoner.load(args.bundle, threads=args.threads)
    questions = usable(
        reasoner, [*trail_set("main", "test", NUM_QUESTIONS), *trail_set("faint", "test", NUM_QUESTIONS)]
    )
    expected = [facts(reasoner.ask(sample.images, sample.question)) for sample in questions]
    soak = Soak(reasoner, questions, expected, max(1, args.asks // 500))
    started = time.perf_counter()
    rows = soak.run(args.asks, args.workers)
    report = {
        "schema": 1,
        "kind": "soak",
        "bundle": str(args.bundle),
        "asks": args.asks,
        "workers": args.workers,
        "threads_per_answer": args.threads,
        "different_questions": len(questions),
        "wrong_answers": soak.wrong,
        "seconds": time.perf_counter() - started,
        **flatness(rows),
        "provenance": collect(cpus=os.cpu_count()),
    }
    write(args.output, rows, report)
    print(
        f"{args.asks} asks by {args.workers} threads in {report['seconds']:.0f} s, {soak.wrong} not as alone; "
        f"memory {report['resident_bytes_first'] / 1e6:.1f} MB after the first answers, "
        f"{report['resident_bytes_last'] / 1e6:.1f} MB at the end, "
        f"{report['slope_bytes_per_1000_asks'] / 1e3:+.1f} kB per 1,000 asks after the first fifth"
    )
    sys.exit(1 if soak.wrong else 0)


def usable(reasoner: Reasoner, samples: list[Sample]) -> list[Sample]:
    """Those within the bundle's limits."""
    kept: list[Sample] = []
    for sample in samples:
        try:
            reasoner.processor.encode_prompt(sample.images, sample.question)
        except CapacityError:
            continue
        kept.append(sample)
    return kept


def facts(answer: Answer) -> tuple[Any, ...]:
    """What must not depend on who asks beside."""
    return answer.text, answer.latent_steps, answer.ar_steps, answer.depths, answer.halting


class Soak:
    """Random questions from several threads; memory noted every `every` asks."""

    def __init__(
        self, reasoner: Reasoner, questions: list[Sample], expected: list[tuple[Any, ...]], every: int
    ) -> None:
        self.reasoner, self.questions, self.expected, self.every = reasoner, questions, expected, every
        self.wrong = 0
        self._done = 0
        self._lock = threading.Lock()
        self._rows: list[Row] = []

    def run(self, asks: int, workers: int) -> list[Row]:
        self._started = time.perf_counter()
        self._note()
        shares = [asks // workers + (number < asks % workers) for number in range(workers)]
        with Progress(transient=True) as progress, ThreadPoolExecutor(workers) as pool:
            self._advance, self._bar = progress.advance, progress.add_task("asking", total=asks)
            for future in [pool.submit(self._ask, share, seed) for seed, share in enumerate(shares)]:
                future.result()
        return self._rows

    def _ask(self, asks: int, seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(asks):
            number = draw.randrange(len(self.questions))
            sample = self.questions[number]
            same = facts(self.reasoner.ask(sample.images, sample.question)) == self.expected[number]
            with self._lock:
                self.wrong += not same
                self._done += 1
                if self._done % self.every == 0:
                    self._note()
                    self._advance(self._bar, self.every)

    def _note(self) -> None:
        self._rows.append((self._done, time.perf_counter() - self._started, resident_bytes()))


def resident_bytes() -> int:
    """Physical memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def flatness(rows: list[Row]) -> dict[str, Any]:
    """Slope and spread of the memory after the warm-up."""
    asks = np.array([row[0] for row in rows], np.float64)
    memory = np.array([row[2] for row in rows], np.float64)
    late = asks >= WARM_UP * asks[-1]
    slope = float(np.polyfit(asks[late], memory[late], 1)[0]) if late.sum() > 1 else None
    return {
        "resident_bytes_first": int(memory[0]),
        "resident_bytes_after_warm_up": int(memory[late][0]),
        "resident_bytes_last": int(memory[-1]),
        "resident_bytes_largest": int(memory.max()),
        "slope_bytes_per_1000_asks": None if slope is None else 1000 * slope,
    }


def write(output: Path, rows: list[Row], report: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([("asks", "seconds", "resident_bytes"), *rows])
    output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no plot: pip install matplotlib", file=sys.stderr)
        return
    axes = (figure := Figure(figsize=(7, 3.2), layout="constrained")).subplots()
    axes.plot([row[0] for row in rows], [row[2] / 1e6 for row in rows], linewidth=1)
    top = 1.2 * report["resident_bytes_largest"] / 1e6
    axes.set(xlabel="questions answered", ylabel="resident memory, MB", ylim=(0, top))
    axes.set_title(f"{report['workers']} threads on one reasoner")
    figure.savefig(output.with_suffix(".png"), dpi=150)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory over thousands of questions to one reasoner.")
    parser.add_argument("bundle", type=Path, help="a folder that `lrkit export` wrote")
    parser.add_argument("--asks", type=int, default=10_000, help="questions in all (default 10000)")
    parser.add_argument("--workers", type=int, default=8, help="threads that ask (default 8)")
    parser.add_argument("--threads", type=int, default=1, help="threads of ONNX Runtime per operator (default 1)")
    parser.add_argument("--output", type=Path, default=Path("soak"), help="name of the files, without ending")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs, not how fast")
    args = parser.parse_args()
    if args.smoke:
        args.asks = 60
    return args


if __name__ == "__main__":
    main()
