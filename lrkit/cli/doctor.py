"""`lrkit doctor`: what is installed, what is missing, and the command that brings it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lrkit.cli.tables import write_json
from lrkit.environment import inspect_environment

EXAMPLES = """
Examples:
  lrkit doctor
  lrkit doctor --json doctor.json
"""


def doctor(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the findings to this file too.")] = None,
) -> None:
    """Show versions, the machine, and which optional parts are installed."""
    found = inspect_environment()
    console = Console(highlight=False, soft_wrap=True)
    console.print(_machine_table(found))
    console.print(_parts_table(found["parts"]))
    for part in found["parts"].values():
        for package, problem in part["missing"].items():
            console.print(f"{part['name']}: {package} {problem}", markup=False)
    for note in found["notes"]:
        console.print(f"note: {note}", markup=False)
    write_json(json_file, {"schema": 1, "kind": "doctor", **found})


def _machine_table(found: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    commit = found["git_commit"]
    changed = " with changes" if found["git_dirty"] else ""
    memory = found["memory_bytes"]
    rows = {
        "lrkit": found["lrkit"] + (f" (commit {commit[:12]}{changed})" if commit else ""),
        "python": found["python"],
        "platform": found["platform"],
        "cpu": f"{found['cpu'] or 'unknown'}, {found['num_cpus']} usable",
        "memory": "unknown" if memory is None else f"{memory / 2**30:.1f} GiB",
        "gpu": ", ".join(f"{gpu['name']} ({gpu['memory']})" for gpu in found["gpus"]) or "no NVIDIA GPU found",
        "onnxruntime": ", ".join(found["onnxruntime_providers"]) or "cannot be imported",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _parts_table(parts: dict[str, Any]) -> Table:
    table = Table(title="parts", title_justify="left")
    for column in ("part", "state", "brought by"):
        table.add_column(column)
    for name, part in parts.items():
        state = "complete" if part["present"] else f"{len(part['missing'])} missing"
        table.add_row(name, state, escape(part["command"] or ""))
    return table
