"""A probe's report as files: report.json, report.md and report.html."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrkit.files import write_json, write_text
from lrkit.probe.probe_markdown import render
from lrkit.probe.probe_page import render_html


def save(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the three into `folder` and returns them.

    Raises:
        FileError: one of them cannot be written.
    """
    files = [folder / f"report{ending}" for ending in (".json", ".md", ".html")]
    write_json(files[0], dict(report))
    for file, text in zip(files[1:], (render(report), render_html(report)), strict=True):
        write_text(file, text)
    return files
