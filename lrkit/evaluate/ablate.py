"""Ablations: one recipe, several variants, several seeds, equal budgets; one table.

    train/sweeps/NAME.yaml -> every (variant, seed) trained and evaluated -> table.json, table.md

Each run has its own folder; one that already holds its result.json is not run again, so an interrupted sweep goes on
where it stopped. Runs share nothing and may go side by side (`jobs`).
"""

import json
import multiprocessing
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from lrkit.config import Config, load_config
from lrkit.errors import UserError
from lrkit.evaluate.benchmarks import load_samples
from lrkit.evaluate.run import EvalOptions, evaluate
from lrkit.model.generated import Mode
from lrkit.provenance import collect
from lrkit.runtime.session import Reasoner
from lrkit.runtime.summary import summarize

RESULT_FILE = "result.json"
LOCK_FILE = ".lock"


class Sweep(Config):
    """An ablation, as read from YAML."""

    name: str
    """Names the folder, runs/NAME, unless -o is given."""
    description: str = ""
    """What is asked, in one sentence."""
    recipe: str
    """The recipe that every run starts from (name or path)."""
    common: tuple[str, ...] = ()
    """Overrides of every run, as on the command line: the equal budget."""
    variants: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Variant -> its overrides."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every variant is trained with each."""
    sets: tuple[str, ...] = ("trail:main", "trail:long", "trail:faint")
    """Sample sets of the table's columns."""
    samples: int = Field(default=400, ge=1)
    """Pictures of each set."""
    mode: Mode = "latent"
    """How the models are asked."""


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    sweep: Sweep
    variant: str
    seed: int
    folder: Path

    @property
    def overrides(self) -> list[str]:
        return [*self.sweep.common, *self.sweep.variants[self.variant], f"seed={self.seed}"]


def load_sweep(source: Path, overrides: Sequence[str] = ()) -> Sweep:
    """A sweep from YAML, with dotted overrides.

    Raises:
        ConfigError: with a line for each problem.
    """
    return load_config(Sweep, source, overrides)


def run_sweep(
    sweep: Sweep, folder: Path, jobs: int = 1, on_result: Callable[[Run, dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Trains and evaluates what is not there yet; returns the table and writes it as table.json and table.md.

    Raises:
        UserError: another process runs a sweep in this folder.
    """
    with _alone(folder):
        return _run_sweep(sweep, folder, jobs, on_result)


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keeps a second process out of the folder; the lock is the system's, so that it ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as held:
        try:
            import fcntl
        except ImportError:  # Windows has none; there two processes must be kept apart by hand
            yield
            return
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder}: another process runs an ablation there; wait for it, or give -o") from error
        yield


def _run_sweep(
    sweep: Sweep, folder: Path, jobs: int, on_result: Callable[[Run, dict[str, Any]], None] | None
) -> dict[str, Any]:
    runs = [
        Run(sweep, variant, seed, folder / f"{variant}-{seed}") for variant in sweep.variants for seed in sweep.seeds
    ]
    results: dict[tuple[str, int], dict[str, Any]] = {}
    # Spawned, not forked: torch's thread pool does not survive a fork. One job runs in a process of its own too, so
    # that every run starts from the same state.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        pending = {pool.submit(run_one, run): run for run in runs}
        for future in as_completed(pending):
            run = pending[future]
            results[run.variant, run.seed] = future.result()
            if on_result is not None:
                on_result(run, results[run.variant, run.seed])
    table = tabulate(sweep, results)
    (folder / "table.json").write_text(json.dumps(table, indent=2) + "\n")
    (folder / "table.md").write_text(render(table))
    return table


def run_one(run: Run) -> dict[str, Any]:
    """One run's accuracies by sample set; from its result.json where that exists."""
    done = run.folder / RESULT_FILE
    if done.is_file():
        return json.loads(done.read_text())
    import torch

    from lrkit.resources import find_recipe
    from lrkit.train.recipe import load_recipe
    from lrkit.train.run import train

    torch.set_num_threads(1)
    recipe = load_recipe(find_recipe(run.sweep.recipe), run.overrides)
    checkpoint = train(recipe, run.folder, resume=True, quiet=True)
    reasoner = Reasoner.from_checkpoint(checkpoint)
    options = EvalOptions(modes=(run.sweep.mode,), batch_size=100, latency_samples=0)
    accuracies: dict[str, Any] = {}
    for name in run.sweep.sets:
        figures = evaluate(reasoner, load_samples(name, run.sweep.samples), options).to_dict()["modes"][run.sweep.mode]
        keys = ("accuracy", "ar_steps_mean", "latent_steps_mean", "accuracy_by_steps", "samples")
        accuracies[name] = {key: figures[key] for key in keys}
    result = {"variant": run.variant, "seed": run.seed, "overrides": run.overrides, "sets": accuracies}
    done.write_text(json.dumps(result, indent=2) + "\n")
    return result


def tabulate(sweep: Sweep, results: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds of each variant and set, with the runs they come from."""
    rows: dict[str, Any] = {}
    for variant in sweep.variants:
        own = [results[variant, seed] for seed in sweep.seeds]
        rows[variant] = {
            name: summarize(result["sets"][name]["accuracy"] for result in own).to_dict() for name in sweep.sets
        }
    return {
        "schema": 1,
        "kind": "ablation",
        "sweep": sweep.model_dump(mode="json"),
        "rows": rows,
        "runs": [results[key] for key in sorted(results)],
        "provenance": collect(),
    }


def render(table: dict[str, Any]) -> str:
    """The table in Markdown: mean accuracy in percent and, over several seeds, the sample standard deviation."""
    sweep = table["sweep"]
    sets = sweep["sets"]
    lines = [
        f"# {sweep['name']}",
        "",
        f"{sweep['description']} Recipe `{sweep['recipe']}`, {len(sweep['seeds'])} seeds, {sweep['samples']} unseen",
        "pictures a set; mean accuracy in percent, and the standard deviation over seeds.",
        "",
        "| variant | " + " | ".join(sets) + " |",
        "|---" * (len(sets) + 1) + "|",
    ]
    for variant, figures in table["rows"].items():
        lines.append(f"| {variant} | " + " | ".join(_cell(figures[name]) for name in sets) + " |")
    return "\n".join(lines) + "\n"


def _cell(figure: dict[str, float | None]) -> str:
    mean, spread = figure["mean"], figure["stdev"]
    if mean is None:
        return "unknown"
    return f"{100 * mean:.1f}" if spread is None else f"{100 * mean:.1f} +- {100 * spread:.1f}"
