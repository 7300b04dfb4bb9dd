"""Ablations: one recipe, several variants, several seeds, equal budgets; one table.

    train/sweeps/NAME.yaml -> every (variant, seed) trained and evaluated -> table.json, table.md

Each run has its own folder. A folder that already holds its result.json is not run again, so an interrupted sweep goes
on where it stopped. Runs share nothing and may run side by side (`jobs`).
"""

import multiprocessing
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from lrkit.config import Config, load_config
from lrkit.contract.generated import Mode
from lrkit.contract.sample import Sample
from lrkit.data.sources import load_samples
from lrkit.errors import ConfigError, FileError, LrkitError, UserError, os_sentence
from lrkit.evaluate.evaluation import EvalOptions, evaluate
from lrkit.files import read_json, write_json, write_text
from lrkit.folders import locked
from lrkit.provenance import collect
from lrkit.runtime.sdk import Reasoner
from lrkit.summary import summarize
from lrkit.train.stop_signals import BY_HAND, TrainingInterrupted, stop_on_signals

GO_ON = "the same command goes on from the last saved update"
"""`lrkit ablate` always resumes, so it has no option for it."""
RESULT_FILE = "result.json"
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)]


class Sweep(Config):
    """An ablation, as read from YAML."""

    name: FolderName
    """Names the folder, runs/NAME, unless -o is given."""
    description: str = ""
    """What is asked, in one sentence."""
    recipe: str
    """The recipe that every run starts from (name or path)."""
    common: tuple[str, ...] = ()
    """Overrides of every run, as on the command line: the equal budget."""
    variants: dict[FolderName, tuple[str, ...]] = Field(min_length=1)
    """Variant -> its overrides."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2), min_length=1)
    """Every variant is trained with each."""
    sets: tuple[str, ...] = Field(default=("trail:main", "trail:long", "trail:faint"), min_length=1)
    """Sample sets of the table's columns."""
    samples: int = Field(default=400, ge=1)
    """Pictures of each set."""
    lengths: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Only those among them with so many steps are asked; empty: all."""
    mode: Mode = "latent"
    """How the models are asked."""
    modes: dict[FolderName, Mode] = {}
    """Variants that are asked in another mode."""

    @model_validator(mode="after")
    def _names_are_known_once(self) -> Self:
        if strange := [name for name in self.modes if name not in self.variants]:
            raise ValueError(
                f"modes names {', '.join(strange)}, and the variants are {', '.join(self.variants)}; name one of these"
            )
        for name, values in (("seeds", self.seeds), ("sets", self.sets)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} {list(values)} name one of them twice; name each once")
        return self


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

    @property
    def mode(self) -> Mode:
        return self.sweep.modes.get(self.variant, self.sweep.mode)


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
        UserError: another process runs a sweep in this folder, a run cannot be done as asked, or a result in the folder
            is of another sweep.
    """
    runs = [
        Run(sweep, variant, seed, folder / f"{variant}-{seed}") for variant in sweep.variants for seed in sweep.seeds
    ]
    for name in sweep.sets:
        _samples(sweep, name)
    _check_runs(runs)
    with _alone(folder):
        results = _results(runs, jobs, on_result)
        table = tabulate(sweep, results)
        write_json(folder / "table.json", table)
        write_text(folder / "table.md", render(table))
    return table


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keeps a second process out of the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise FileError(os_sentence(error, folder)) from error
    with locked(folder, "runs an ablation in", inside=True):
        yield


def _check_runs(runs: Sequence[Run]) -> None:
    """Every recipe can be read, and every result that is there is one of this sweep, before the first run trains.

    Raises:
        UserError: with a line for each problem.
    """
    problems: list[str] = []
    for run in runs:
        try:
            _read_result(run)
        except UserError as error:
            problems += [f"variant {run.variant}: {line}" for line in str(error).splitlines()]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def _results(
    runs: Sequence[Run], jobs: int, on_result: Callable[[Run, dict[str, Any]], None] | None
) -> dict[tuple[str, int], dict[str, Any]]:
    results: dict[tuple[str, int], dict[str, Any]] = {}
    # Spawned, not forked: torch's thread pool does not survive a fork. One job runs in a process of its own too, so
    # that every run starts from the same state.
    context = multiprocessing.get_context("spawn")
    with stop_on_signals(), ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        waiting, begun = list(runs), dict[Future[dict[str, Any]], Run]()
        try:
            while waiting or begun:
                # The pool is never given more than it can begin: after Ctrl-C it would begin the rest.
                while waiting and len(begun) < jobs:
                    run = waiting.pop(0)
                    begun[pool.submit(run_one, run)] = run
                for future in wait(begun, return_when=FIRST_COMPLETED).done:
                    run = begun.pop(future)
                    results[run.variant, run.seed] = _outcome(run, future)
                    if on_result is not None:
                        on_result(run, results[run.variant, run.seed])
        except KeyboardInterrupt as stop:
            for child in multiprocessing.active_children():  # a scheduler may have told this process alone
                child.terminate()
            raise TrainingInterrupted(
                "stopped; the same command goes on with the runs that are left", getattr(stop, "exit_code", BY_HAND)
            ) from stop
    return results


def _outcome(run: Run, future: Future[dict[str, Any]]) -> dict[str, Any]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a run's process was killed (is memory short?); the same command goes on, with fewer --jobs if need be"
        ) from error
    except LrkitError as error:
        raise UserError(f"{run.variant}, seed {run.seed}: {error}") from error


def run_one(run: Run) -> dict[str, Any]:
    """One run's accuracies by sample set; from its result.json where that exists.

    Raises:
        UserError: the run cannot be done, or the result is of another sweep.
    """
    recipe, result = _read_result(run)
    if result is not None:
        return result
    import torch

    from lrkit.train.run import train

    torch.set_num_threads(1)
    checkpoint = train(recipe, run.folder, resume=True, quiet=True, go_on=GO_ON)
    reasoner = Reasoner.from_checkpoint(checkpoint)
    options = EvalOptions(modes=(run.mode,), batch_size=100, latency_samples=0)
    accuracies: dict[str, Any] = {}
    for name in run.sweep.sets:
        figures = evaluate(reasoner, _samples(run.sweep, name), options).to_dict()["modes"][run.mode]
        keys = (
            "accuracy", "ar_steps_mean", "latent_steps_mean", "routed_depths_mean", "accuracy_by_steps", "samples",
        )  # fmt: skip
        accuracies[name] = {key: figures[key] for key in keys}
    result = {**_asked(run, recipe), "sets": accuracies}
    write_json(run.folder / RESULT_FILE, result)
    return result


def _samples(sweep: Sweep, name: str) -> list[Sample]:
    """The samples of a set that are asked.

    Raises:
        UserError: there is no such set, or none of its samples has as many steps as asked for.
    """
    drawn = load_samples(name, sweep.samples)
    if not sweep.lengths:
        return drawn
    found = [sample for sample in drawn if len(sample.steps) in sweep.lengths]
    if not found:
        there = ", ".join(map(str, sorted({len(sample.steps) for sample in drawn})))
        raise UserError(
            f"no sample of {name} has {' or '.join(map(str, sweep.lengths))} steps, but {there}; change lengths, or "
            "raise samples"
        )
    return found


def _read_result(run: Run) -> tuple[Any, dict[str, Any] | None]:
    """The run's recipe, and its result where it is there.

    Raises:
        UserError: the recipe cannot be read, or the result is no result of this sweep.
    """
    from lrkit.resources import find_recipe
    from lrkit.train.recipe import differences, load_recipe

    recipe = load_recipe(find_recipe(run.sweep.recipe), run.overrides)
    file = run.folder / RESULT_FILE
    if not file.is_file():
        return recipe, None
    result = read_json(file)
    asked = _asked(run, recipe)
    changed = list(differences({name: result.get(name) for name in asked}, asked))
    if not isinstance(result.get("sets"), dict) or set(result["sets"]) != set(run.sweep.sets):
        changed.append(f"sets: are not {', '.join(run.sweep.sets)}")
    if changed:
        raise ConfigError(f"{file} is the result of another sweep ({changed[0]}); remove it, or give another -o")
    return recipe, result


def _asked(run: Run, recipe: Any) -> dict[str, Any]:
    """What a result is the answer to."""
    from lrkit.train.recipe import as_written

    asked = {
        "variant": run.variant,
        "seed": run.seed,
        "overrides": run.overrides,
        "recipe": as_written(recipe),
        "mode": run.mode,
        "samples": run.sweep.samples,
    }
    return {**asked, "lengths": list(run.sweep.lengths)} if run.sweep.lengths else asked


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
    lengths = sweep.get("lengths")
    of = f" (asked: those of {' or '.join(map(str, lengths))} steps)" if lengths else ""
    lines = [
        f"# {sweep['name']}",
        "",
        f"{sweep['description']} Recipe `{sweep['recipe']}`, {len(sweep['seeds'])} seeds, {sweep['samples']} unseen",
        f"pictures a set{of}; mean accuracy in percent, and the standard deviation over seeds.",
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
