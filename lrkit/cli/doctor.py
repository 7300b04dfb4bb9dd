"""`lrkit doctor`: what this machine can do, what is installed, what is missing, and the command that brings it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lrkit.cli.shared.console import beside_json
from lrkit.cli.shared.tables import json_option, write_json
from lrkit.environment import inspect_environment

EXAMPLES = """
Examples:
  lrkit doctor
  lrkit doctor --no-rates --json doctor.json
"""


def doctor(
    rates: Annotated[bool, typer.Option(help="Measure memory bandwidth and products; takes some seconds.")] = True,
    json_file: Annotated[Path | None, json_option("Write the findings to this file too.")] = None,
) -> None:
    """Show what can run here and how fast, versions, and which optional parts are installed."""
    from lrkit.profile.ceilings.machine import inspect_machine

    found = {**inspect_environment(), **inspect_machine(rates)}
    console = beside_json(json_file, soft_wrap=True)
    console.print(_machine_table(found))
    console.print(_engines_table(found["engines"]))
    console.print(found["engine_advice"])
    if found["rates"] is not None:
        console.print(_rates_table(found["rates"]))
    console.print(_parts_table(found["parts"]))
    for part in found["parts"].values():
        for package, problem in part["missing"].items():
            console.print(f"{part['name']}: {package} {problem}")
    for note in found["notes"]:
        console.print(f"note: {note}")
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
        "cpu": f"{found['cpu'] or 'unknown'}, {_cores(found)}",
        "memory": "unknown" if memory is None else f"{memory / 2**30:.1f} GiB",
        "gpu": ", ".join(_gpu(gpu) for gpu in found["gpus"]) or f"none: {found['no_gpu_reason']}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _cores(found: dict[str, Any]) -> str:
    quota = found["cores"]["quota"]
    limited = "" if quota is None else f" of {found['cores']['visible']} (quota: {quota:g})"
    return f"{found['num_cpus']} usable{limited}"


def _gpu(gpu: dict[str, Any]) -> str:
    known = (gpu["compute_capability"], gpu["memory"], gpu["driver"] and f"driver {gpu['driver']}")
    return f"{gpu['name']} ({', '.join(value for value in known if value)})"


def _engines_table(engines: list[dict[str, Any]]) -> Table:
    table = Table(title="engines", title_justify="left")
    for column in ("engine", "version", "here", "runs on", "brought by"):
        table.add_column(column)
    for engine in engines:
        here = "usable" if engine["usable"] else "no"
        cells = (engine["name"], engine["version"] or "-", here, engine["runs_on"], engine["command"] or "")
        table.add_row(*cells)
    return table


def _rates_table(rates: list[dict[str, Any]]) -> Table:
    table = Table(title="measured here, the best of some tries", title_justify="left")
    table.add_column("by")
    for column in ("threads", "copy GB/s", "read GB/s", "product", "GFLOP/s"):
        table.add_column(column, justify="right")
    for row in rates:
        moved = [f"{row[key] / 1e9:.1f}" for key in ("memory_copy_bytes_per_sec", "read_bytes_per_sec")]
        product = f"{row['matmul_side']} x {row['matmul_side']} {row['dtype']}"
        table.add_row(
            row["by"], str(row["threads"] or "-"), *moved, product, f"{row['matmul_flops_per_sec'] / 1e9:.0f}"
        )
    return table


def _parts_table(parts: dict[str, Any]) -> Table:
    table = Table(title="parts", title_justify="left")
    for column in ("part", "state", "brought by"):
        table.add_column(column)
    for name, part in parts.items():
        state = "complete" if part["present"] else f"{len(part['missing'])} missing"
        table.add_row(name, state, part["command"] or "")
    return table
