"""`lrkit analyze MODEL`: gradients at hidden states and of attention's matrices, effective depth, embeddings."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from rich.table import Table

from lrkit.cli.shared.console import bars, beside_json
from lrkit.cli.shared.options import Device, Download
from lrkit.cli.shared.tables import json_option, write_json
from lrkit.files import check_writable

EXAMPLES = """
Examples:

    lrkit analyze tiny -o tiny-analysis

    lrkit analyze runs/my-run --samples 64

    lrkit analyze runs/my-run --stage latent-2 --data held-out.jsonl --json report.json

    lrkit train trail-latent analyze.every=50 -o runs/watched

    lrkit analyze runs/watched --recorded
"""


def analyze(
    model: Annotated[str, typer.Argument(help="A checkpoint, a shipped name, or a run: all its stages that reason.")],
    samples: Annotated[int, typer.Option(min=2, max=4096, help="Samples, measured one by one.")] = 32,
    data: Annotated[
        str | None, typer.Option(help="trail:main (long, faint, wide) or a .jsonl. [default: as it was trained]")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Runs: this stage alone.")] = None,
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Runs: show what training wrote down (analyze.every), compute nothing.")
    ] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of report, figures and rows.")] = Path(
        "analysis"
    ),
    seed: Annotated[int | None, typer.Option(min=0, help="Of the samples drawn. [default: the recipe's]")] = None,
    device: Device = None,
    download: Download = False,
    json_file: Annotated[Path | None, json_option("Write the report to this file too.")] = None,
) -> None:
    """Measure what moves where while a model learns: gradients by kind of token and matrix, depth, and embeddings.

    What moves is not what counts for the answer: that is a question of interventions, not of gradients.
    """
    check_writable(output, folder=True)
    from lrkit.analyze.after import analyse, find_subjects
    from lrkit.analyze.analysis_files import check_packages, make_report, save
    from lrkit.analyze.during import read_recorded
    from lrkit.runtime.engines.torch.engine import check_device

    check_packages()
    if device is not None:
        check_device(device)
    if recorded:
        _refuse_beside_recorded(data, stage, seed)
        rows = read_recorded(Path(model))
    else:
        subjects = find_subjects(model, stage)
        with bars(MofNCompleteColumn(), TimeRemainingColumn()) as progress:
            task = progress.add_task("checkpoints", total=len(subjects))
            rows = analyse(subjects, samples, data, seed, device, lambda: progress.advance(task))
    told = "as training recorded them" if recorded else data or "drawn as its recipe draws"
    report = make_report(rows, model, told, recorded=recorded, seed=seed)
    files = save(report, rows, output)
    _show(report, json_file)
    beside_json(json_file, soft_wrap=True).print("written: " + ", ".join(str(path) for path in files))
    write_json(json_file, report, precious=True)


def _show(report: dict[str, Any], json_file: Path | None) -> None:
    """The ratios point by point, and the sentences."""
    from lrkit.analyze.analysis_page import ratio_rows
    from lrkit.analyze.analysis_summary import GRADIENTS

    console = beside_json(json_file, soft_wrap=True)
    table = Table(title="visual tokens' gradients over those of text", title_justify="left")
    for column in ("updates", "stage", "loss", *GRADIENTS.values()):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in ratio_rows(report["points"]):
        table.add_row(*row)
    console.print(table)
    for sentence in report["headlines"]:
        console.print(sentence)


def _refuse_beside_recorded(data: str | None, stage: str | None, seed: int | None) -> None:
    from lrkit.errors import UserError

    given = {"--data": data, "--stage": stage, "--seed": seed}
    if beside := " and ".join(name for name, value in given.items() if value is not None):
        raise UserError(f"{beside} cannot change what training recorded; leave {beside} out, or --recorded")
