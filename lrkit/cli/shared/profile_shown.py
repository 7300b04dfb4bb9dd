"""A profile's report: written, and printed as one table with its sentences."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from lrkit.cli.shared.console import STDOUT, beside_json
from lrkit.cli.shared.tables import milliseconds, number, percent, write_json

if TYPE_CHECKING:
    from lrkit.profile.report import Report


def save_and_show(report: "Report", folder: Path, json_file: Path | None) -> None:
    """Writes report.json, report.md and report.html into `folder`, the JSON into `json_file` too, and prints it.

    Raises:
        FileError: a file cannot be written.
        KeyboardInterrupt: the measurement was interrupted, and so is the verb.
    """
    from lrkit.profile.profile_models import save
    from lrkit.profile.report_file import write_report

    files = save(report, folder)
    if json_file == STDOUT:
        write_json(json_file, report)
    elif json_file is not None:
        write_report(report, json_file)
    show(report, json_file)
    beside_json(json_file, soft_wrap=True).print("report: " + ", ".join(str(file) for file in files))
    if report["partial"]:
        raise KeyboardInterrupt(f"interrupted; the report of what was measured is in {folder}")


def show(report: "Report", json_file: Path | None) -> None:
    """Prints the runs, what was skipped, the headlines, and what a sweep chose."""
    from lrkit.profile.judge.sweep import replay_sentence
    from lrkit.profile.measure.choice import chosen_settings, how_to_export

    console = beside_json(json_file, soft_wrap=True)
    table = Table(title="runs", title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("right", "AR steps", "latent", "median", "p95", "failed"):
        table.add_column(name, justify="right")
    for run in report["runs"]:
        s = run["summary"]
        figures = [percent(s["accuracy"]["value"]), number(s["ar_steps"]["mean"]), number(s["latent_steps"]["mean"])]
        times = [milliseconds(s["latency_sec"][key]) for key in ("median", "p95")]
        table.add_row(run["id"], *figures, *times, f"{s['failures']} of {s['answers']}")
    console.print(table)
    for item in report["skipped"]:
        console.print(f"{item['run']} was skipped: {item['reason']}")
    for sentence in report["headlines"]:
        console.print(sentence)
    if report["sweep"]:
        console.print(f"use {report['sweep']['use']}: {report['sweep']['why']}")
        settings = report["models"][0]["settings"]
        if report["sweep"]["use"] and (how := how_to_export(chosen_settings(report["sweep"]), settings)):
            console.print(how)
        if report["sweep"]["replay_against_cot"]:
            console.print(replay_sentence(report["sweep"]["replay_against_cot"]))
