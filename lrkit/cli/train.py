"""`lrkit train RECIPE`: run a training recipe, stop it, go on with it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table

from lrkit.cli.shared.console import bars, beside_json
from lrkit.cli.shared.launched import Crew
from lrkit.cli.shared.options import dry_run_option
from lrkit.cli.shared.tables import json_option, percent, write_json

if TYPE_CHECKING:
    from lrkit.train.recipe import Recipe

EXAMPLES = """
Examples:

    lrkit train smoke

    lrkit train trail-base --dry-run

    lrkit train m3cot-style --plan --datasheet h100-sxm --devices 8 --machines 2

    lrkit train trail-latent optimizer.lr=3e-4 seed=1 -o runs/latent-1

    lrkit train trail-latent optimizer.lr=3e-4 seed=1 -o runs/latent-1 --resume

    lrkit train my-recipe.yaml data.train=my.jsonl --json report.json
"""

PLANNING = "With --plan"
Plan = Annotated[
    bool,
    typer.Option(
        "--plan", help="Estimate memory, operations and time, without weights, and stop.", rich_help_panel=PLANNING
    ),
]
PlanDevice = Annotated[
    str | None,
    typer.Option("--datasheet", help="Of a device: a name of `lrkit ls device`, or a file.", rich_help_panel=PLANNING),
]
PlanDevices = Annotated[
    int | None,
    typer.Option("--devices", help="How many of them a machine has. [default: 1]", rich_help_panel=PLANNING),
]
PlanMachines = Annotated[
    int | None,
    typer.Option("--machines", help="How many machines train together. [default: 1]", rich_help_panel=PLANNING),
]
PlanAssume = Annotated[
    list[str] | None,
    typer.Option(
        "--assume",
        metavar="KEY=VALUE",
        help="As utilisation=[0.3,0.6] or data.samples=5000; repeat.",
        rich_help_panel=PLANNING,
    ),
]


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `lrkit ls`) or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes of the recipe, by dotted path.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The run's folder. [default: runs/NAME]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder; start it where there is none.")
    ] = False,
    dry_run: Annotated[
        bool, dry_run_option("Check everything that can be checked without loading weights, and stop.")
    ] = False,
    plan: Plan = False,
    datasheet: PlanDevice = None,
    devices: PlanDevices = None,
    machines: PlanMachines = None,
    assume: PlanAssume = None,
    json_file: Annotated[Path | None, json_option("Write the run's report to this file.")] = None,
) -> None:
    """Train a reasoner, stage by stage, with a checkpoint after each.

    Ctrl-C saves the run; --resume goes on with the same losses as if it had never stopped. SIGTERM and SIGUSR1 of a
    scheduler save it too, and the exit code is then 75: start the same command again, with --resume.
    """
    from lrkit.resources import find_recipe
    from lrkit.train.recipe import load_recipe

    planning = {"--datasheet": datasheet, "--devices": devices, "--machines": machines, "--assume": assume}
    _together(plan, planning, resume, dry_run)
    _writes(plan, output)
    asked = load_recipe(find_recipe(recipe), overrides or [])
    folder = output or Path("runs") / asked.name
    follows = Crew.of(["train"]).follows  # another process of the same run tells what there is to tell
    if dry_run:
        return _checked(asked, folder, resume) if follows else _dry_run(asked, folder, resume, json_file)
    if plan:
        return None if follows else _plan_run(asked, datasheet, (devices, machines), assume, json_file)
    checkpoint = _trained(asked, folder, resume)
    if follows:
        return
    from lrkit.train.run_report import read_run

    report = read_run(folder)
    console = beside_json(json_file)
    console.print(_result(report))
    console.print(f"checkpoint: {checkpoint}")
    write_json(json_file, report)


def _trained(recipe: "Recipe", folder: Path, resume: bool) -> Path:
    """The last checkpoint; signals are heard while torch is imported too."""
    from lrkit.train.stop_signals import stop_on_signals

    with stop_on_signals():
        _require_packages()
        from lrkit.train.run import train as run

        return run(recipe, folder, resume=resume)


def _together(plan: bool, planning: dict[str, Any], resume: bool, dry_run: bool) -> None:
    """Raises `UserError` for options that do not go together."""
    from lrkit.errors import UserError

    if plan and (resume or dry_run):
        raise UserError("--plan trains and checks nothing; leave out --resume and --dry-run, or --plan")
    if not plan and (only := [name for name, value in planning.items() if value is not None]):
        raise UserError(f"{', '.join(only)} belongs to --plan; add --plan, or leave it out")


def _writes(plan: bool, output: Path | None) -> None:
    """Raises `UserError` where a folder is named that nothing would be written into."""
    from lrkit.errors import UserError

    if plan and output is not None:
        raise UserError(
            "--plan writes no run, so -o has nothing to name; leave it out, or give --json FILE for the plan"
        )


def _plan_run(
    recipe: "Recipe",
    device: str | None,
    counts: tuple[int | None, int | None],
    assume: list[str] | None,
    json_file: Path | None,
) -> None:
    from lrkit.cli.shared.train_plan import run_plan

    _require_packages()
    devices, machines = (1 if count is None else count for count in counts)
    run_plan(recipe, device, (devices, machines), assume or [], json_file)


def _require_packages() -> None:
    """What training imports, before anything begins."""
    from lrkit.errors import require
    from lrkit.train.checks import PACKAGES

    # The first thing that transformers and tensorboard would say is not about this run. Nor is a warning of torch, in
    # every process, that no weight was left out of a batch: of the next one may be.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for package in PACKAGES:
        require(package, "train")


def _checked(recipe: "Recipe", folder: Path, resume: bool) -> None:
    """The checks of a process that follows: a file may be missing on its machine alone."""
    from lrkit.train.checks import find_problems

    find_problems(recipe, folder, resume)


def _dry_run(recipe: "Recipe", folder: Path, resume: bool, json_file: Path | None) -> None:
    """Checks, the plan, and what could not be checked; the findings, good or bad, also go to `json_file`."""
    from lrkit.errors import UserError
    from lrkit.train.checks import find_problems, missing_package, unchecked

    findings: dict[str, Any] = {"recipe": recipe.name, "folder": str(folder), "unchecked": list(unchecked(recipe))}
    try:
        with bars(TaskProgressColumn(), TimeRemainingColumn()) as progress:
            find_problems(recipe, folder, resume, lambda path: _reading(progress, path))
    except UserError as error:
        write_json(json_file, findings | {"ok": False, "problems": str(error).splitlines()})
        raise
    console = beside_json(json_file)
    console.print(_plan(recipe))
    for note in findings["unchecked"]:
        console.print(f"not checked: {note}")
    if (missing := missing_package()) is not None:
        console.print(f"training itself cannot begin here: {missing}")
    console.print(f"nothing wrong was found; the run would be written to {folder}")
    write_json(json_file, findings | {"ok": True, "problems": []})


def _reading(progress: Progress, path: Path) -> Callable[[int], None]:
    """A bar that counts the bytes of a data file."""
    task = progress.add_task(f"reading {path.name}", total=path.stat().st_size)
    return lambda size: progress.advance(task, size)


def _plan(recipe: "Recipe") -> Table:
    table = Table(title=f"{recipe.name}: {recipe.description}", title_justify="left")
    for column in ("stage", "objective", "latent steps", "lengths", "budget"):
        table.add_column(column)
    for stage in recipe.stages:
        budget = f"{stage.updates} updates" if stage.updates is not None else f"{stage.epochs} epochs"
        if stage.until is not None:
            budget += f", or {stage.until.accuracy:.0%} right on {stage.until.on}"
        lengths = ", ".join(map(str, stage.lengths)) or "all"
        table.add_row(stage.name, stage.objective, str(stage.latent_steps), lengths, budget)
    return table


def _result(report: dict[str, Any]) -> Table:
    table = Table(title=f"{report['recipe']}: {report['updates']} updates", title_justify="left")
    for column in ("stage", "updates", "right on validation"):
        table.add_column(column, justify="right" if column == "updates" else "left")
    for stage in report["stages"]:
        right = ", ".join(f"{name}: {percent(value)}" for name, value in stage["accuracy"].items())
        table.add_row(stage["name"], str(stage["updates"]), right or "not measured")
    return table
