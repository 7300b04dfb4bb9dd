"""The heat maps of a report: routed depth by layer, and by layer and token. See svg.py for the strokes."""

from collections.abc import Mapping, Sequence
from typing import Any

from lrkit.profile.pages.markdown import number
from lrkit.profile.pages.svg import labelled, legend, rect, svg, text

Values = Mapping[str, Any]

_SHADES = 8
_CELL = 12
"""Height of a layer's row."""
_GAP = 1.6
"""Percent of the width between two chunks."""
_MOST_MAPS = 6
"""Maps on a page, which must stay small."""


def depth_map(runs: Sequence[Values]) -> str | None:
    """Mean routed token-depths by layer; None where nothing routes."""
    routed = [run for run in runs if run["summary"]["depths_mean"]]
    if not routed:
        return None
    layers = sorted({int(layer) for run in routed for layer in run["summary"]["depths_mean"]})
    most = max(value for run in routed for value in run["summary"]["depths_mean"].values()) or 1.0
    width = 100 / len(layers)
    rows: list[str] = []
    for run in routed:
        cells: list[str] = []
        for index, layer in enumerate(layers):
            value = run["summary"]["depths_mean"].get(str(layer), 0.0)
            shade = _shade(value / most)
            cells.append(rect(index * width, 2, width - 0.4, 24, shade, f"layer {layer}: {value:.1f} token-depths"))
            if len(layers) <= 16:
                ink = "on-dark" if value / most > 0.55 else "on-light"
                cells.append(text((index + 0.5) * width, 18, number(value, 0), "middle", f"tick {ink}"))
        rows.append(labelled(run["id"], svg(28, *cells, label=f"routed depth of {run['id']}")))
    names = [
        text((i + 0.5) * width, 13, f"layer {layer}" if i == 0 else str(layer), "middle")
        for i, layer in enumerate(layers)
    ]
    return "".join(rows) + labelled("", svg(18, *names, label="layers"))


def token_maps(runs: Sequence[Values]) -> str | None:
    """Mean extra passes of a token, layers down and tokens across; None where no run can tell."""
    mapped = [run for run in runs if run["summary"].get("depth_map")]
    if not mapped:
        return None
    shown = mapped[:_MOST_MAPS]
    most = max(
        value
        for run in shown
        for chunk in run["summary"]["depth_map"]["chunks"]
        for row in chunk["passes"]
        for value in row
    )
    drawn = [labelled(run["id"], _token_map(run, most or 1.0), f"up to {most:.2f}") for run in shown]
    left = (
        f'<p class="note">{len(mapped) - len(shown)} more are in report.json.</p>' if len(mapped) > len(shown) else ""
    )
    marks = [
        ("heat0", "no pass"),
        (f"heat{_SHADES // 2}", "half of them"),
        (f"heat{_SHADES}", "most passes"),
        ("v-image", "picture"),
        ("v-text", "words"),
    ]
    return legend(marks) + "".join(drawn) + left


def _token_map(run: Values, most: float) -> str:
    found = run["summary"]["depth_map"]
    chunks, layers = found["chunks"], found["layers"]
    columns = sum(len(chunk["passes"][0]) for chunk in chunks)
    width = (100 - _GAP * (len(chunks) - 1)) / columns
    parts, left, bottom = list[str](), 0.0, 8 + _CELL * len(layers)
    for chunk in chunks:
        size = width * len(chunk["passes"][0])
        for column, share in enumerate(chunk.get("visual", ())):
            parts.append(rect(left + column * width, 0, width * 0.94, 4, "v-image" if share > 0.5 else "v-text"))
        parts += _cells(chunk["passes"], left, width, most)
        parts.append(
            text(
                left if chunk is chunks[0] else left + size / 2,
                bottom + 13,
                _name(chunk),
                "start" if chunk is chunks[0] else "middle",
            )
        )
        left += size + _GAP
    parts.append(text(-0.6, 8 + 9, str(layers[0]), "end"))
    parts.append(text(-0.6, bottom - 3, str(layers[-1]), "end"))
    return svg(bottom + 18, *parts, label=f"routed depth of {run['id']} by layer and token")


def _name(chunk: Values) -> str:
    """Steps are many and narrow: their number alone."""
    return "prompt" if chunk["name"] == "prompt" else chunk["name"].removeprefix("step ")


def _cells(passes: Sequence[Sequence[float]], left: float, width: float, most: float) -> list[str]:
    """Neighbours of one shade are one cell, and nothing is drawn where nothing passes: a page of maps stays small."""
    parts: list[str] = []
    for row, values in enumerate(passes):
        shades, start = [_shade(value / most) for value in values], 0
        parts.append(rect(left, 8 + row * _CELL, width * len(values), _CELL - 1, "heat0"))
        for end in range(1, len(shades) + 1):
            if end == len(shades) or shades[end] != shades[start]:
                if shades[start] != "heat0":
                    parts.append(
                        rect(left + start * width, 8 + row * _CELL, (end - start) * width, _CELL - 1, shades[start])
                    )
                start = end
    return parts


def _shade(share: float) -> str:
    return f"heat{round(_SHADES * share)}"
