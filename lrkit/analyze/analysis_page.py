"""The report as one HTML page that needs nothing else: sentences, figures, tables, and what each measure is.

Place in the pipeline: analysis_summary.py and analysis_plots.py -> `render_page` -> report.html. Its looks: style.css
of profile/pages.
"""

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from lrkit.analyze.analysis_summary import GRADIENTS, MATRICES
from lrkit.profile.pages.svg import escape

Values = Mapping[str, Any]
_NOTES = {
    "gradients": (
        "Gradients at hidden states",
        "The norm of the loss's gradient at each token's hidden state, by the layer that the state enters. Bands are "
        "95% intervals over the samples. Ratios are of each sample against itself, over all layers.",
    ),
    "nuclear": (
        "Gradients of attention's matrices",
        "The sum of the singular values of the gradient of what is trained in q, k, v and o. Easy: the half of the "
        "samples with fewer steps, and of those with as many, with less loss.",
    ),
    "depth": (
        "Effective depth",
        "The head is read in front of each layer: how often it already says what it says at last. Settled: after that "
        "many layers it no longer changes. Beside it, the norm of what a layer adds over the norm of what it is given.",
    ),
    "projection": (
        "Embeddings",
        "Latents beside visual tokens and words, as they enter the first layer: their directions, on the two axes "
        "of their largest variance.",
    ),
}


def render_page(report: Values, images: Mapping[str, bytes]) -> str:
    """The whole page."""
    style = files("lrkit.profile.pages").joinpath("style.css").read_text(encoding="utf-8")
    name = f"Analysis of {report['model']}"
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{style}img{{max-width:100%;height:auto;background:#fff}}</style></head>"
    )
    first, *more = report["headlines"]
    lead = "".join(f'<p class="lead">{escape(line)}</p>' for line in more)
    made = report["provenance"]
    top = f"lrkit analyze &middot; {escape(str(report['model']))} &middot; {escape(made['time_utc'][:10])}"
    body = [f'<header><p class="eyebrow">{top}</p><h1>{escape(first)}</h1>{lead}</header>']
    body += [_figure(key, images[key]) for key in _NOTES if key in images]
    body += [_section("Visual over text", _ratios(report["points"]), "With 95% intervals, over all layers.")]
    body += [_section("Hard over easy", _hard(report["points"]), "Nuclear norms, with 95% intervals, over all layers.")]
    body += [_section("How it was measured", _how(report))]
    return f"{head}<body><main>{''.join(body)}</main></body></html>\n"


def _figure(key: str, png: bytes) -> str:
    name, note = _NOTES[key]
    data = base64.b64encode(png).decode()
    return _section(name, f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">', note)


def _section(name: str, content: str, note: str = "") -> str:
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(name)}</h2>{said}{content}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def shown(found: Values | None, digits: int = 2) -> str:
    """A figure with its interval."""
    if found is None or found["value"] is None:
        return "-"
    bounds = "" if found["low"] is None else f" ({found['low']:.{digits}f} to {found['high']:.{digits}f})"
    return f"{found['value']:.{digits}f}{bounds}"


def ratio_rows(points: Sequence[Values]) -> list[list[str]]:
    """Point by point: updates, stage, loss, and visual over text by each measure."""
    return [
        [str(p["updates"]), p["stage"], shown(p["loss"]), *(shown(p["visual_over_text"][name]) for name in GRADIENTS)]
        for p in points
    ]


def _ratios(points: Sequence[Values]) -> str:
    return _table(("updates", "stage", "loss", *GRADIENTS.values()), ratio_rows(points))


def _hard(points: Sequence[Values]) -> str:
    rows = [
        [str(p["updates"]), p["stage"], shown(p["nuclear"].get("hard_over_easy"))]
        + [shown(p["nuclear"].get(kind, {}).get("hard_over_easy")) for kind in MATRICES]
        for p in points
    ]
    return _table(("updates", "stage", "all four", *MATRICES), rows)


def _how(report: Values) -> str:
    made = report["provenance"]
    items = {
        "model": report["model"],
        "data": report["data"],
        "samples": f"{report['points'][-1]['samples']}, measured one by one, the same at every point of a stage",
        "command": report["command"],
        "machine": f"{made['cpu']}; lrkit {made['lrkit']}, torch {made['packages']['torch']}",
    }
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in items.items())
    return f"<dl>{pairs}</dl>"
