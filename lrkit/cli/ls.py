"""`lrkit ls`: the names that recipes, targets, suites and checkpoints are found by."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from lrkit.cli.shared.console import beside_json
from lrkit.cli.shared.tables import json_option, write_json
from lrkit.resources import list_everything

EXAMPLES = """
Examples:
  lrkit ls
  lrkit ls recipe
  lrkit ls checkpoint --runs experiments --json names.json
"""


def ls(
    kind: Annotated[
        Literal["all", "recipe", "target", "rules", "suite", "device", "shape", "checkpoint"],
        typer.Argument(help="What to list."),
    ] = "all",
    runs: Annotated[Path, typer.Option(help="Folder of runs whose checkpoints are listed too.")] = Path("runs"),
    json_file: Annotated[Path | None, json_option("Write the list to this file too.")] = None,
) -> None:
    """List what ships with lrkit and the checkpoints of your runs."""
    found = [resource for resource in list_everything(runs) if kind in ("all", resource.kind)]
    table = Table(box=None, pad_edge=False)
    for column in ("kind", "name", "what it is"):
        table.add_column(column)
    for resource in found:
        table.add_row(resource.kind, resource.name, resource.description)
    beside_json(json_file).print(table if found else "nothing of that kind is here")
    rows = [{"kind": r.kind, "name": r.name, "path": str(r.path), "description": r.description} for r in found]
    write_json(json_file, {"schema": 1, "kind": "ls", "resources": rows})
