"""Memory of each process of a run, with `shard: true` and without, against what `lrkit train --plan` states.

    OMP_NUM_THREADS=1 python -m benchmarks.shard_memory [--json FILE] [--rounds 2]

Every case trains two updates of the recipe `smoke` with random weights large enough that they outweigh everything else:
all train, in 1, 2 or 4 processes that meet by gloo on this machine, over eight batches of one sample an update. The
kernel counts the largest resident memory of each process, as in benchmarks/plan_memory.py, and what it had after a
smaller run of as many processes is taken off. The plan is of the same recipe on as many CPUs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.plan_memory import CPU, ROOT, UPDATES, resident_bytes
from benchmarks.training_step import cpu_name, versions

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""The C library then gives back at once what is freed, matrices in bfloat16 too."""
PARTS = ("weights", "masters", "gradients", "arriving", "optimizer", "copies", "communication")
"""What of a plan grows with the weights."""


@dataclass(frozen=True)
class Case:
    """One run."""

    processes: int
    shard: bool
    precision: str
    layers: int = 12
    width: int = 512

    @property
    def name(self) -> str:
        return f"{self.processes} processes, {'parts' if self.shard else 'whole'}, {self.precision}"


CASES = tuple(
    Case(processes, shard, precision)
    for precision in ("float32", "bfloat16")
    for processes, shard in ((1, False), (2, False), (2, True), (4, False), (4, True))
)
SMOKE = (Case(2, True, "float32", 2, 256),)


def overrides(case: Case, layers: int, width: int) -> list[str]:
    """What makes the recipe `smoke` the case."""
    sizes = {"hidden_size": width, "intermediate_size": 11 * width // 4, "num_layers": layers, "num_heads": 4}
    return [
        *(f"init.{name}={value}" for name, value in sizes.items()), "init.num_kv_heads=4",
        f"shard={str(case.shard).lower()}", f"precision={case.precision}", "batch_size=1", "accumulate=8",
        "stages=[{name: think, lengths: [1, 2], latent_steps: all, updates: 100}]", "eval.samples=0", "save_every=1000",
    ]  # fmt: skip


def work(case: Case, folder: Path) -> dict[str, float]:
    """Trains as one process of the case: resident bytes after a smaller run and at most."""
    from lrkit.train.recipe import load_recipe

    first = load_recipe("smoke", [*overrides(case, 2, 64), "stages.0.updates=2"])
    return resident_bytes(first, load_recipe("smoke", overrides(case, case.layers, case.width)), folder)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Plan and runs of one case."""
    from lrkit.train.plan.plan import plan_training
    from lrkit.train.recipe import load_recipe

    plan = plan_training(load_recipe("smoke", overrides(case, case.layers, case.width)), CPU, case.processes)
    memory, trained = plan["memory"], plan["parameters"]["trained"]
    runs = [_run(case) for _ in range(rounds)]
    needed = [one["peak"] - one["before"] for run in runs for one in run]
    median = statistics.median(needed)
    return {
        "case": case.name, **asdict(case), "trained": trained, "planned_bytes": memory["total"],
        "planned": {name: memory[name] for name in PARTS}, "measured_bytes": median,
        "measured_low": min(needed), "measured_high": max(needed), "ratio": memory["total"] / median,
        "planned_per_weight": memory["total"] / trained, "measured_per_weight": median / trained,
        "before_bytes": statistics.median(one["before"] for run in runs for one in run),
    }  # fmt: skip


def _run(case: Case) -> list[dict[str, float]]:
    """All processes of a run at once, as a launcher would start them, in one folder."""
    from tests.stress.side_by_side import free_port

    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.shard_memory", "--work", json.dumps(asdict(case))]
    shared = (
        os.environ
        | MALLOC
        | {"TORCH_CPP_LOG_LEVEL": "ERROR", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    )
    shared |= {"WORLD_SIZE": str(case.processes), "LOCAL_WORLD_SIZE": str(case.processes)}
    with tempfile.TemporaryDirectory() as place:
        begun = [
            subprocess.Popen(
                [*command, place], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(case.processes)
        ]  # fmt: skip
        said = [process.communicate()[0] for process in begun]
    if any(process.returncode for process in begun):
        raise SystemExit(f"{case.name}: a process failed")
    return [json.loads(one.splitlines()[-1]) for one in said]


def show(row: dict[str, Any]) -> str:
    """Planned and measured (median, least, most) in MB, planned over measured, and both for each weight that trains."""
    sizes = (row[name] / 1e6 for name in ("planned_bytes", "measured_bytes", "measured_low", "measured_high"))
    each = (row[name] for name in ("ratio", "planned_per_weight", "measured_per_weight"))
    return f"{row['case']:32} {' '.join(f'{size:7.0f}' for size in sizes)} {' '.join(f'{one:6.2f}' for one in each)}"


def report_of(rows: Sequence[dict[str, Any]], rounds: int, cases: int) -> dict[str, Any]:
    """The report of what has run so far."""
    ratios = [row["ratio"] for row in rows]
    return {
        "kind": "shard-memory", "recipe": "smoke", "updates": UPDATES, "rounds": rounds, "cases": cases,
        "rows": list(rows), "ratio_low": min(ratios), "ratio_high": max(ratios), "cpu": cpu_name(),
        "versions": versions(), "command": "OMP_NUM_THREADS=1 python -m benchmarks.shard_memory",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each case")
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument("--smoke", action="store_true", help="the smallest size, once: whether it runs")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(Case(**json.loads(options.work[0])), Path(options.work[1]))))
        return
    cases, rounds = (SMOKE, 1) if options.smoke else (CASES, options.rounds)
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows.append(measure(case, rounds))
        print(show(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(report_of(rows, rounds, len(cases)), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
