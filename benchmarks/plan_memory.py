"""Memory that `lrkit train --plan` states, against that of real runs on a CPU.

    OMP_NUM_THREADS=2 python -m benchmarks.plan_memory [--json FILE] [--rounds 3]

Every case trains two updates of the paper's recipe in a process of its own: a random model in Qwen2-VL's published
layout, with the published 151,936 words, on pictures and chains that are drawn. The kernel counts the largest resident
memory from before the first update to behind the last, and what the process had after a smaller run is taken off. The
plan is of the same recipe on a CPU. Runs of a case differ by what the allocator keeps, so each is run several times.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.training_step import cpu_name, versions

ROOT = Path(__file__).parents[1]
UPDATES = 2
CPU = "epyc-9654"
"""Some datasheet of a CPU: its kernels are counted, its memory is the buyer's choice."""


@dataclass(frozen=True)
class Case:
    """One run."""

    layers: int
    width: int
    batch: int
    trainable: str
    precision: str
    picture: tuple[int, int] = (280, 280)
    dropout: float = 0.05
    accumulate: int = 1

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}, batch {self.batch}, {self.trainable}, {self.precision}"


MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
"""The C library then gives back at once what is freed; as it is, it keeps up to a third more for what comes next."""
SMOKE = (Case(2, 64, 2, "lora", "float32", (112, 84)),)
CASES = (
    *(Case(4, 256, 4, trainable, precision) for trainable in ("lora", "full") for precision in ("float32", "bfloat16")),
    Case(8, 512, 4, "lora", "float32"),
    Case(8, 512, 4, "lora", "bfloat16"),
    Case(8, 512, 4, "full", "bfloat16"),
    Case(6, 384, 2, "lora", "bfloat16", (560, 560), 0.0, 4),
)


def overrides(case: Case, base: Path, lines: Path) -> list[str]:
    """What makes the paper's recipe the case."""
    return [
        f"init={base}", f"data.train={lines}", f"trainable={case.trainable}", f"precision={case.precision}",
        f"batch_size={case.batch}", f"accumulate={case.accumulate}", f"model.lora.dropout={case.dropout}",
        "stages=[{name: all, latent_steps: all, updates: 100}]", "eval.samples=0", "save_every=1000",
    ]  # fmt: skip


def work(case: Case, folder: Path) -> dict[str, float]:
    """Trains the case in this process: resident bytes after a smaller run and at most."""
    from lrkit.train.recipe import load_recipe

    recipe = load_recipe("m3cot-style", overrides(case, folder / "base", folder / "data/samples.jsonl"))
    small = replace(case, layers=2, width=64, batch=2)
    first = [*overrides(small, folder / "small", folder / "data/samples.jsonl"), "stages.0.updates=2"]
    return resident_bytes(load_recipe("m3cot-style", first), recipe, folder)


def resident_bytes(first: Any, recipe: Any, folder: Path) -> dict[str, float]:
    """What this process has after the run `first`, and at most in the first updates of `recipe`. A first run, however
    small, imports what every run does and readies the same kernels."""
    from lrkit.train import run

    run.train(first, folder / "first", quiet=True)
    before, asked, peak = _status("VmRSS"), 0, 0.0

    def between() -> bool:
        nonlocal asked, peak
        if asked == 0:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel counts the largest memory from here on
        peak, asked = _status("VmHWM"), asked + 1
        return asked > UPDATES

    with suppress(KeyboardInterrupt):
        run.train(recipe, folder / "run", quiet=True, stop=between)
    return {"before": before, "peak": peak}


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(name)).split()[1])


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Plan and runs of one case."""
    from lrkit.train.plan.plan import plan_training
    from lrkit.train.recipe import load_recipe
    from tests.published import write_drawn_samples, write_published

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_published(folder / "base", layers=case.layers, width=case.width)
        write_published(folder / "small", layers=2, width=64)
        lines = write_drawn_samples(folder / "data", count=16, size=case.picture)
        plan = plan_training(load_recipe("m3cot-style", overrides(case, folder / "base", lines)), CPU)["memory"]
        found = [_in_process(case, folder) for _ in range(rounds)]
    needed = [one["peak"] - one["before"] for one in found]
    median = statistics.median(needed)
    parts = {name: plan[name] for name in _PARTS}
    return {
        "case": case.name, **asdict(case), "planned_bytes": plan["total"], "measured_bytes": median,
        "measured_low": min(needed), "measured_high": max(needed), "ratio": plan["total"] / median, "planned": parts,
        "before_bytes": statistics.median(one["before"] for one in found),
    }  # fmt: skip


_PARTS = (
    "weights", "gradients", "optimizer", "copies", "prompt", "latents", "speech", "tower", "logits", "pictures",
    "tables", "scratch",
)  # fmt: skip


def _in_process(case: Case, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.plan_memory", "--work", json.dumps(asdict(case))]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name in ("base", "small", "data"):
            (Path(place) / name).symlink_to(folder / name)
        done = subprocess.run(
            [*command, place], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | MALLOC
        )
    return json.loads(done.stdout.splitlines()[-1])


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A line a case: planned, measured (median, least, most) in MB, and planned over measured."""
    for row in rows:
        sizes = (row[name] / 1e6 for name in ("planned_bytes", "measured_bytes", "measured_low", "measured_high"))
        print(f"{row['case']:44} {' '.join(f'{size:9.0f}' for size in sizes)} {row['ratio']:6.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case")
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument("--smoke", action="store_true", help="the smallest size, once: whether it runs")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        values = json.loads(options.work[0])
        print(json.dumps(work(Case(**{**values, "picture": tuple(values["picture"])}), Path(options.work[1]))))
        return
    cases, rounds = (SMOKE, 1) if options.smoke else (CASES, options.rounds)
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows.append(measure(case, rounds))
        show(rows[-1:])
        if options.json:
            options.json.write_text(json.dumps(report_of(rows, rounds, len(cases)), indent=1) + "\n")


def report_of(rows: Sequence[dict[str, Any]], rounds: int, cases: int) -> dict[str, Any]:
    """The report of what has run so far."""
    ratios = [row["ratio"] for row in rows]
    return {
        "recipe": "m3cot-style", "updates": UPDATES, "rounds": rounds, "cases": cases, "rows": list(rows),
        "ratio_low": min(ratios), "ratio_high": max(ratios), "cpu": cpu_name(), "versions": versions(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
