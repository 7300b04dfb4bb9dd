"""`lrkit report FILE`: a report of `lrkit profile` shown again and its pages rendered, or those of what an export found
of a bundle; nothing is measured."""

from pathlib import Path
from typing import Annotated

import typer

from lrkit.cli.shared.console import out
from lrkit.cli.shared.profile_shown import show
from lrkit.cli.shared.profiling import FailIf, refuse_held
from lrkit.contract.bundle.bundle_folder import is_bundle, open_bundle
from lrkit.errors import UserError
from lrkit.files import check_writable

EXAMPLES = """
Examples:

    lrkit report runs/profile

    lrkit report profiles/reports/tiny-cpu.json -o pages

    lrkit report tiny-int4

    lrkit report runs/profile/report.json --fail-if "latent.p95_ms > 500"
"""


def report(
    file: Annotated[Path, typer.Argument(help="A report.json, the folder of `lrkit profile`, or a bundle.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the pages. [default: that of FILE; of a bundle: beside it]"),
    ] = None,
    fail_if: FailIf = None,
) -> None:
    """Show a report again and render its pages, Markdown and HTML, from the JSON.

    Of a bundle: the error of each phase as its export found it, and the matrices that rounding hurts most.
    """
    if is_bundle(file):
        return _of_bundle(file, output, fail_if)
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


def _of_bundle(bundle: Path, output: Path | None, fail_if: list[str] | None) -> None:
    from lrkit.profile.pages.rounding_page import render_rounding
    from lrkit.profile.report_file import whole

    if fail_if:
        raise UserError(f"--fail-if is about a report of lrkit profile, and {bundle} is a bundle; leave it out")
    folder = output or bundle.parent
    check_writable(folder, folder=True)
    with whole(bundle):
        pages = render_rounding(open_bundle(bundle).manifest, folder / f"{bundle.name}-errors")
    out(soft_wrap=True).print("pages: " + ", ".join(str(one) for one in pages))
