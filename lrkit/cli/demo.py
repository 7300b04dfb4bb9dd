"""`lrkit demo`: the shipped model answers questions about handwritten scans without reasoning, in words and in
latents."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lrkit.cli.tables import headline, modes_table, write_json
from lrkit.model.generated import MODES

EXAMPLES = """
Examples:

    lrkit demo

    lrkit demo --samples 1000 --json demo.json
"""


def demo(
    samples: Annotated[int, typer.Option(min=1, help="Held-out pictures.")] = 300,
    latency_samples: Annotated[int, typer.Option(min=1, help="Pictures timed one by one.")] = 40,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the pictures.")] = Path("runs/demo"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Ask the shipped model about held-out pictures in three modes; show accuracy, steps, latency and one trace."""
    from lrkit.evaluate.demo import demonstrate
    from lrkit.provenance import collect

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars = {mode: progress.add_task(mode, total=samples) for mode in MODES}
        shown = demonstrate("tiny", output, samples, latency_samples, lambda m, count: progress.advance(bars[m], count))
    console = Console(highlight=False)
    report = shown.to_dict()
    console.print(modes_table(report, f"tiny on {samples} held-out pictures, 1 to 4 hops"))
    if (sentence := headline(report)) is not None:
        console.print(sentence)
    console.print(f"\n{shown.example['latent'].question}  (right: {shown.expected})", markup=False)
    for mode, answer in shown.example.items():
        console.print(f"  {mode}, {answer.ar_steps} steps: {answer.text}", markup=False)
    console.print(f"\nthe picture: {shown.picture}\nwhere each latent step looked: {shown.trace}", markup=False)
    write_json(json_file, {"schema": 1, "kind": "demo", **report, "provenance": collect()})
