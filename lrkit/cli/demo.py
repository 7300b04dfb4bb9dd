"""`lrkit demo`: the shipped model answers questions about handwritten scans without reasoning, in words and in
latents; a second one reads a small picture and looks closer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from rich.table import Table

from lrkit.cli.shared.console import bars, beside_json
from lrkit.cli.shared.tables import headline, json_option, milliseconds, modes_table, percent, write_json
from lrkit.contract.generated import MODES
from lrkit.errors import MissingExtraError
from lrkit.files import check_writable

if TYPE_CHECKING:
    from lrkit.profile.demo import EngineFigures

EXAMPLES = """
Examples:

    lrkit demo

    lrkit demo --samples 1000 --json demo.json
"""


def demo(
    samples: Annotated[int, typer.Option(min=1, help="Held-out pictures.")] = 300,
    latency_samples: Annotated[int, typer.Option(min=1, help="Pictures timed one by one.")] = 40,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the pictures.")] = Path("runs/demo"),
    json_file: Annotated[Path | None, json_option("Write all figures to this file.")] = None,
) -> None:
    """Ask the shipped model about held-out pictures in three modes, and one that looks closer; show accuracy, steps,
    latency and traces."""
    from lrkit.profile.demo import demonstrate
    from lrkit.provenance import collect

    check_writable(output, folder=True)
    with bars(MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        tasks = {mode: progress.add_task(mode, total=samples) for mode in MODES}
        shown = demonstrate(
            "tiny", output, samples, latency_samples, lambda m, count: progress.advance(tasks[m], count)
        )
    console = beside_json(json_file)
    report = shown.to_dict()
    console.print(modes_table(report, f"tiny on {samples} held-out pictures, 1 to 8 hops"))
    if (sentence := headline(report)) is not None:
        console.print(sentence)
    console.print(f"\n{shown.example['latent'].question}  (right: {shown.expected})")
    for mode, answer in shown.example.items():
        console.print(f"  {mode}, {answer.ar_steps} steps: {answer.text}")
    console.print(f"\nthe picture: {shown.picture}\nwhere each latent step looked: {shown.trace}")
    report["closer"] = _closer(console, output, samples)
    report["engines"] = {row.name: row.to_dict() for row in _engines(console, output, latency_samples)}
    write_json(json_file, {"schema": 1, "kind": "demo", **report, "provenance": collect()}, precious=True)


def _closer(console: Console, output: Path, samples: int) -> dict[str, Any]:
    """Coarse first, then closer: what replay is worth where the prompt shows no detail."""
    from lrkit.probe.looking_closer import show_looking_closer
    from lrkit.runtime.sdk import Reasoner

    with bars(MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        tasks = {what: progress.add_task(what, total=samples) for what in ("chosen windows", "random windows")}
        shown = show_looking_closer(
            Reasoner.from_checkpoint("tiny/closer"), output, samples,
            on_answers=lambda what, count: progress.advance(tasks[what], count),
        )  # fmt: skip
    figures = shown.to_dict()
    chosen, drawn = (figures[name]["value"] for name in ("accuracy", "accuracy_with_random_windows"))
    console.print(
        f"\ntiny/closer reads a picture of half the size, in which no sign can be read ({shown.visual_tokens} visual "
        f"tokens); each latent step looks at one window in full ({shown.window_tokens} tokens)"
    )
    console.print(f"  right with the windows it chooses: {percent(chosen)}; with random ones: {percent(drawn)}")
    console.print(f"  {shown.example.question}  (right: {shown.expected}): {shown.example.text}")
    console.print(f"the picture: {shown.picture}\nwhat it read and where it looked: {shown.trace}\n")
    return figures


def _engines(console: Console, output: Path, samples: int) -> "list[EngineFigures]":
    """Export, validate, ask: the same model as one program; nothing, with a word why, where export is not installed."""
    from lrkit.profile.demo import compare_engines

    try:
        rows = compare_engines("tiny", output, samples, lambda what: console.print(f"  {what}"))
    except MissingExtraError as error:
        console.print(f"\nthe program without torch is left out: {error}")
        return []
    table = Table(title="the same model as one program, latent mode", title_justify="left")
    table.add_column("engine")
    for name in ("size", "right", "latency", "against torch"):
        table.add_column(name, justify="right")
    slow = rows[0].latency.median
    for row in rows:
        faster = (
            "" if row is rows[0] or not slow or not row.latency.median else f"{slow / row.latency.median:.1f}x faster"
        )
        share = f"{row.correct}/{row.latency.count}"
        table.add_row(row.name, f"{row.bytes / 1e6:.1f} MB", share, milliseconds(row.latency.median), faster)
    console.print(table)
    console.print(f"the bundles: {output / 'cpu-fp32'}, {output / 'cpu-int4'}")
    return rows
