"""`lrkit compare BEFORE AFTER`: two reports of `lrkit profile`, run by run: slower, faster or the same."""

from pathlib import Path
from typing import Annotated

import typer

from lrkit.cli.shared.console import beside_json
from lrkit.cli.shared.tables import json_option, write_json

EXAMPLES = """
Examples:

    lrkit compare before after

    lrkit compare before/report.json after/report.json --json compared.json
"""


def compare(
    before: Annotated[Path, typer.Argument(help="A report.json, or its folder.")],
    after: Annotated[Path, typer.Argument(help="Another, of the same runs.")],
    json_file: Annotated[Path | None, json_option("Write the comparison to this file too.")] = None,
) -> None:
    """Compare two reports of the same runs, and say what changed by more than the machine drifts."""
    from lrkit.profile.pages.comparison import compare_reports, render_comparison
    from lrkit.profile.report_file import read_report

    compared = compare_reports(read_report(before), read_report(after))
    beside_json(json_file, soft_wrap=True).print(render_comparison(compared))
    write_json(json_file, compared)
