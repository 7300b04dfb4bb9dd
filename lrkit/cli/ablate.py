"""`lrkit ablate SWEEP`: train variants of one recipe with several seeds and print one table."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markdown import Markdown
from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from lrkit.cli.shared.console import bars, beside_json, printable
from lrkit.cli.shared.tables import json_option, percent, write_json
from lrkit.files import check_writable

EXAMPLES = """
Examples:

    lrkit ablate trail-ablation --jobs 2

    lrkit ablate train/sweeps/trail-ablation.yaml seeds=[0] samples=200 -o runs/quick
"""


def ablate(
    sweep: Annotated[str, typer.Argument(help="A shipped sweep or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes of the sweep, by dotted path.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of the runs.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, one thread each.")] = 1,
    json_file: Annotated[Path | None, json_option("Write the table to this file too.")] = None,
) -> None:
    """Train variants of a recipe at equal budget, with several seeds, and compare them; goes on where it stopped."""
    from lrkit.resources import find_sweep
    from lrkit.train.ablate import Run, load_sweep, render, run_sweep

    asked = load_sweep(find_sweep(sweep), overrides or [])
    folder = output or Path("runs") / asked.name
    check_writable(folder, folder=True)
    with bars(MofNCompleteColumn(), TimeRemainingColumn(), transient=False) as progress:
        bar = progress.add_task(asked.name, total=len(asked.variants) * len(asked.seeds))

        def on_result(run: Run, result: dict[str, Any]) -> None:
            shares = ", ".join(f"{name} {percent(figures['accuracy'])}" for name, figures in result["sets"].items())
            progress.console.print(f"{run.variant}, seed {run.seed}: {shares}")
            progress.advance(bar)

        table = run_sweep(asked, folder, jobs, on_result)
    beside_json(json_file).print(Markdown(printable(render(table))))
    write_json(json_file, table)
