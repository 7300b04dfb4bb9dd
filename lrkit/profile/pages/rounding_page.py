"""What an export found of a bundle, as Markdown and HTML: the error by phase, the matrices that rounding hurts most.

Place in the pipeline: bundle.json -> `lrkit report BUNDLE` -> `render_rounding`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.manifest import Manifest
from lrkit.errors import DataError
from lrkit.files import write_text
from lrkit.profile.pages.page import html_table, page, section
from lrkit.profile.pages.svg import labelled, rect, svg

Values = Mapping[str, Any]
WORST = 16
"""Matrices that are shown."""
HEAD = ("program", "phase", "mean error", "largest", "samples")
MATRICES = ("measure", "matrix", "error", "kept as")
NOTE = "Relative, in the Euclidean norm, against torch in floats; of speech, the share of words that are the same."


def render_rounding(manifest: Manifest, stem: Path) -> list[Path]:
    """Writes STEM.md and STEM.html.

    Raises:
        DataError: the bundle was written before errors were recorded by phase.
        FileError: they cannot be written.
    """
    rows, matrices = phase_rows(manifest), matrix_rows(manifest)
    if not rows:
        raise DataError(
            f"the bundle of {manifest.name} has no errors by phase, which exports record by now; export it again"
        )
    title = f"{manifest.name}: errors by phase"
    parts = [f"# {title}", NOTE, _table(HEAD, rows)]
    parts += ["## Sensitive matrices", _table(MATRICES, matrices)] if matrices else []
    body = [section("Error by phase", html_table(HEAD, rows) + _bars(rows, 1, 2), NOTE)]
    body += [section("Sensitive matrices", _bars(matrices, 1, 2) + html_table(MATRICES, matrices))] if matrices else []
    files = [stem.with_suffix(ending) for ending in (".md", ".html")]
    write_text(files[0], "\n\n".join(parts) + "\n")
    write_text(files[1], page(title, body))
    return files


def phase_rows(manifest: Manifest) -> list[list[str]]:
    """Program by program, in the order of an answer."""
    rows: list[list[str]] = []
    for role, found in manifest.validation.items():
        phases = found.measured.get("phases")
        for phase, one in phases.items() if isinstance(phases, dict) else ():
            if not isinstance(one, dict):
                continue  # the norm
            words = one.get("words_alike")
            said = [_number(one.get("mean")), _number(one.get("largest"))] if words is None else [_share(words), "-"]
            rows.append([role, phase, *said, str(one.get("samples"))])
    return rows


def matrix_rows(manifest: Manifest) -> list[list[str]]:
    """The worst of each measure, the worst first."""
    chosen: Values = manifest.provenance.get("sensitive") or {}
    kept = dict.fromkeys(chosen.get("kept", ()), str(chosen.get("kept_as")))
    measures: dict[str, Values] = {"weights": chosen.get("errors", {})}
    for role, one in (manifest.provenance.get("calibration") or {}).items():
        measures[f"products, {role}"] = one.get("off", {})
    return [
        [measure, role, _number(error), kept.get(role, "-")]
        for measure, errors in measures.items()
        for role, error in list(errors.items())[:WORST]
    ]


def _bars(rows: Sequence[Sequence[str]], name: int, value: int) -> str:
    """A bar for each row whose value is a number."""
    found = [(f"{row[0]} {row[name]}", row[value]) for row in rows if row[value][-1:].isdigit()]
    most = max((float(value) for _, value in found), default=0.0) or 1.0
    drawn = (
        labelled(said, svg(14, rect(0, 2, 100 * float(value) / most, 10, "r0"), label=f"{said} {value}"), value)
        for said, value in found
    )
    return "".join(drawn)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "-"
