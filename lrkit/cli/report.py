"""`lrkit report FILE`: a report of `lrkit profile` shown again and its pages rendered; nothing is measured."""

from pathlib import Path
from typing import Annotated

import typer

from lrkit.cli.shared.console import out
from lrkit.cli.shared.profile_shown import show
from lrkit.cli.shared.profiling import FailIf, refuse_held
from lrkit.files import check_writable

EXAMPLES = """
Examples:

    lrkit report runs/profile

    lrkit report profiles/reports/tiny-cpu.json -o pages

    lrkit report runs/profile/report.json --fail-if "latent.p95_ms > 500"
"""


def report(
    file: Annotated[Path, typer.Argument(help="A report.json, or the folder of `lrkit profile`.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the pages. [default: that of FILE]")
    ] = None,
    fail_if: FailIf = None,
) -> None:
    """Show a report again and render its pages, Markdown and HTML, from the JSON."""
    from lrkit.profile.measure.conditions import parse_condition
    from lrkit.profile.profile_models import render_pages
    from lrkit.profile.report_file import read_report, report_path, whole

    conditions = [parse_condition(text) for text in fail_if or []]
    file = report_path(file)
    folder = output or file.parent
    check_writable(folder, folder=True)
    found = read_report(file)
    pages = render_pages(found, folder / file.stem)
    with whole(file):
        show(found, None)
    out(soft_wrap=True).print("pages: " + ", ".join(str(page) for page in pages))
    with whole(file):
        refuse_held(conditions, found)
