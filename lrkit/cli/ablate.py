"""`lrkit ablate SWEEP`: train variants of one recipe with several seeds and print one table."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lrkit.cli.tables import percent, write_json

EXAMPLES = """
Examples:

    lrkit ablate trail-ablation --jobs 2

    lrkit ablate train/sweeps/trail-ablation.yaml seeds=[0] samples=200 -o runs/quick
"""


def ablate(
    sweep: Annotated[str, typer.Argument(help="A shipped sweep or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value changes of the sweep.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of the runs.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, one thread each.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table to this file too.")] = None,
) -> None:
    """Train variants of a recipe at equal budget, with several seeds, and compare them; goes on where it stopped."""
    from lrkit.evaluate.ablate import Run, load_sweep, render, run_sweep
    from lrkit.resources import find_sweep

    asked = load_sweep(find_sweep(sweep), overrides or [])
    folder = output or Path("runs") / asked.name
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(asked.name, total=len(asked.variants) * len(asked.seeds))

        def on_result(run: Run, result: dict[str, Any]) -> None:
            shares = ", ".join(f"{name} {percent(figures['accuracy'])}" for name, figures in result["sets"].items())
            progress.console.print(f"{run.variant}, seed {run.seed}: {shares}")
            progress.advance(bar)

        table = run_sweep(asked, folder, jobs, on_result)
    Console().print(Markdown(render(table)))
    write_json(json_file, table)
