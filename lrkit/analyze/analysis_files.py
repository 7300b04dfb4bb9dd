"""The files of an analysis: report.json, report.html, the figures as PNG, and the rows.

Place in the pipeline: after.py or during.py give rows -> analysis_summary.py -> `save`.
"""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrkit.analyze.analysis_page import render_page
from lrkit.analyze.analysis_plots import draw
from lrkit.analyze.analysis_summary import summarize_rows
from lrkit.analyze.rows import Row, write_rows
from lrkit.errors import require
from lrkit.files import write_bytes, write_text
from lrkit.provenance import collect

_INNERMOST = re.compile(r"[\[{][^\[\]{}]*[\]}]")


def check_packages() -> None:
    """What draws is there; looked at before the work begins. Raises MissingExtraError."""
    require("matplotlib", "analyze")


def make_report(rows: Sequence[Row], model: str, data: str, **head: Any) -> dict[str, Any]:
    """The report of these rows; `head` joins its top."""
    command = shlex.join(["lrkit", *sys.argv[1:]])
    return summarize_rows(rows, model=model, data=data, command=command, **head, provenance=collect())


def save(report: dict[str, Any], rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes everything into `folder`, and gives the files.

    Raises:
        FileError: one cannot be written.
    """
    images = draw(report, rows)
    paths = [folder / "report.json", folder / "report.html"]
    text = json.dumps(report, indent=1, allow_nan=False)
    # A figure with its interval on one line: a report has thousands.
    write_text(paths[0], _INNERMOST.sub(lambda found: " ".join(found[0].split()), text) + "\n")
    write_text(paths[1], render_page(report, images))
    for name, png in images.items():
        paths.append(folder / f"{name}.png")
        write_bytes(paths[-1], png)
    return [*paths, write_rows(rows, folder)]
