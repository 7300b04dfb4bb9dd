"""Tables and files that several verbs print: figures of `Evaluation.to_dict`, and JSON reports."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.table import Table

from lrkit import files
from lrkit.cli.shared.console import STDOUT, err, out
from lrkit.cli.shared.options import COMMON
from lrkit.errors import FileError
from lrkit.files import check_writable


def percent(value: float | None) -> str:
    """A share as a percentage; unknown stays unknown."""
    return "unknown" if value is None else f"{100 * value:.1f}%"


def milliseconds(value: float | None) -> str:
    """Seconds as milliseconds; unknown stays unknown."""
    return "unknown" if value is None else f"{1000 * value:.1f} ms"


def number(value: float | None, digits: int = 1) -> str:
    """A figure; unknown stays unknown."""
    return "unknown" if value is None else f"{value:.{digits}f}"


def modes_table(figures: dict[str, Any], title: str) -> Table:
    """One row per mode: accuracy with its interval, means per answer, median latency of one question at a time."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("mode", no_wrap=True)
    for name in ("accuracy, 95%", "AR steps", "latent", "spoken", "replayed", "latency"):
        table.add_column(name, justify="right", no_wrap=True)
    for mode, row in figures["modes"].items():
        interval = "" if row["accuracy"] is None else f" ({_bare(row['accuracy_low'])}-{_bare(row['accuracy_high'])})"
        means = (row["ar_steps_mean"], row["latent_steps_mean"], row["spoken_tokens_mean"], row["replayed_tokens_mean"])
        latency = milliseconds(row["latency_sec_median"])
        table.add_row(mode, percent(row["accuracy"]) + interval, *map(number, means), latency)
    return table


def _bare(share: float) -> str:
    return f"{100 * share:.1f}"


def headline(figures: dict[str, Any]) -> str | None:
    """What latents bought over explicit steps, in one sentence; None unless both were measured."""
    ratios, paired = figures["cot_over_latent"], figures["latent_minus"].get("cot")
    if ratios["ar_steps"] is None or paired is None:
        return None
    faster = "" if ratios["latency"] is None else f", {ratios['latency']:.1f}x faster"
    points = 100 * paired["difference"]
    low, high = 100 * paired["low"], 100 * paired["high"]
    return (
        f"latent against cot: {ratios['ar_steps']:.1f}x fewer autoregressive steps{faster}, "
        f"accuracy {points:+.1f} points (95% interval {low:+.1f} to {high:+.1f})"
    )


def json_option(help: str) -> Any:
    """The option `--json FILE`; whether FILE can be written is looked at before the verb begins its work."""
    return typer.Option("--json", help=f"{help} -: to standard output.", callback=_check_json, rich_help_panel=COMMON)


def _check_json(file: Path | None) -> Path | None:
    if file is not None and file != STDOUT:
        check_writable(file)
    return file


def write_json(file: Path | None, report: dict[str, Any], precious: bool = False) -> None:
    """Writes a report where a file was asked for. One that is `precious` took long to make: where the file cannot be
    written any more, it goes into the folder of temporary files, or else to standard error.

    Raises:
        FileError: it cannot be written; the message says where it is instead.
    """
    if file == STDOUT:
        out(soft_wrap=True).print(json.dumps(report, indent=2))
    elif file is not None:
        try:
            files.write_json(file, report)
        except FileError as error:
            if not precious:
                raise
            raise FileError(f"{error}; {_rescue(file, report)}") from error


def _rescue(file: Path, report: dict[str, Any]) -> str:
    """Keeps a report that its file could not take, and says where."""
    place = Path(tempfile.gettempdir()) / f"lrkit-{os.getpid()}-{file.name[-60:]}"
    try:
        files.write_json(place, report)
    except FileError:
        err(soft_wrap=True).print(json.dumps(report))
        return "the report was printed instead"
    return f"the report is in {place} instead"
