"""The figures of an analysis as PNG, drawn by matplotlib.

Place in the pipeline: analysis_summary.py's report, and the rows of the projection -> `draw` -> PNG bytes ->
analysis_page.py, files.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from lrkit.analyze.analysis_summary import GRADIENTS, MATRICES, TOKENS
from lrkit.analyze.rows import Row
from lrkit.errors import require

Values = Mapping[str, Any]
_COLORS = dict(zip(TOKENS, ("#e07a1f", "#2358d6", "#c9a227", "#3f9a6b", "#8a56c2"), strict=True))
_GROUPS = {"easy": "#2b95a8", "hard": "#c2415a"}
_DPI = 90
_SHADES = 96
"""Colours of a figure: a third of the bytes."""


def draw(report: Values, rows: Sequence[Row]) -> dict[str, bytes]:
    """Name -> PNG."""
    figures: dict[str, tuple[Callable[[Any], None], int]] = {
        "gradients": (lambda axes: _gradients(axes, report), 3),
        "nuclear": (lambda axes: _nuclear(axes, report), 4),
        "depth": (lambda axes: _depth(axes, report), 2),
        "projection": (lambda axes: _projection(axes, report, rows), 1),
    }
    return {name: _png(fill, columns) for name, (fill, columns) in figures.items()}


def _png(fill: Callable[[Any], None], columns: int) -> bytes:
    # Not pyplot: it keeps figures, and asks for a display.
    figure = require("matplotlib.figure", "analyze").Figure(figsize=(max(5.2, 3.7 * columns), 3.5), dpi=_DPI)
    fill(figure.subplots(1, columns, squeeze=False)[0])
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(_SHADES).save(small, format="png", optimize=True)
    return small.getvalue()


def _gradients(axes: Any, report: Values) -> None:
    last = report["points"][-1]
    by_layer, over_time, ratio = axes
    for kind, found in last["tokens"].items():
        _band(by_layer, range(report["layers"]), found["gradient_mean"][:-1], kind, _COLORS[kind])
        values = [_mean_over_layers(point, kind) for point in report["points"]]
        over_time.plot(_updates(report), values, "-o", ms=3, color=_COLORS[kind], label=kind)
    for number, (name, told) in enumerate(GRADIENTS.items()):
        found = [point["visual_over_text"][name] for point in report["points"]]
        _band(ratio, _updates(report), found, told, f"C{number}")
    ratio.axhline(1, color="black", lw=0.8)
    for one, label, title in (
        (by_layer, "layer that the state enters", f"gradient of a token, after {last['updates']} updates"),
        (over_time, "updates", "gradient of a token, all layers"),
        (ratio, "updates", "visual over text"),
    ):
        _scaled(one)
        one.set(xlabel=label, title=title)
        one.legend(fontsize=7)


def _nuclear(axes: Any, report: Values) -> None:
    last = report["points"][-1]["nuclear"]
    for one, kind in zip(axes, MATRICES, strict=True):
        for part, style in zip(last.get(kind, {}), ("-", "--", ":"), strict=False):
            for group, color in _GROUPS.items() if part != "hard_over_easy" else ():
                found = last[kind][part][group]
                _band(one, range(len(found)), found, f"{part}, {group}", color, style)
        _scaled(one)
        one.set(xlabel="layer", title=f"nuclear norm of {kind}'s gradient")
        if kind in last:
            one.legend(fontsize=7)


def _depth(axes: Any, report: Values) -> None:
    last = report["points"][-1]
    early, adds = axes
    for kind, found in last["depth"].items():
        early.plot(found["agreement"], "-o", ms=3, color=_COLORS[kind], label=kind)
        early.axvline(found["settled"]["value"], color=_COLORS[kind], lw=0.8, ls=":")
    for kind, found in last["tokens"].items():
        _band(adds, range(report["layers"]), found["contribution"][:-1], kind, _COLORS[kind])
    early.set(xlabel="layers run (dotted: settled)", title="head says its last word already", ylim=(0, 1.05))
    adds.set(xlabel="layer", title="what a layer adds, over what it is given")
    _scaled(adds)
    for one in axes:
        if one.get_legend_handles_labels()[0]:
            one.legend(fontsize=7)


def _projection(axes: Any, report: Values, rows: Sequence[Row]) -> None:
    (one,) = axes
    last = report["points"][-1]
    places: dict[tuple[str, int | None, int | None], dict[str, float]] = {}
    for row in rows:
        at_last = (row.updates, row.stage) == (last["updates"], last["stage"])
        if at_last and row.measure in ("pc1", "pc2") and row.value is not None:
            places.setdefault((row.kind, row.sample, row.token), {})[row.measure] = row.value
    for kind in TOKENS:
        own = np.array([[p["pc1"], p["pc2"]] for (of, _, _), p in places.items() if of == kind and len(p) == 2])
        if len(own):
            one.scatter(own[:, 0], own[:, 1], s=9, alpha=0.6, color=_COLORS[kind], label=kind, linewidths=0)
    share = [100 * (value or 0.0) for value in last["projection_share"]]
    if len(share) == 2:
        one.set(xlabel=f"first axis, {share[0]:.0f}% of the variance", ylabel=f"second axis, {share[1]:.0f}%")
        one.legend(fontsize=7)
    one.set(title="directions of what enters the first layer")


def _updates(report: Values) -> list[int]:
    return [point["updates"] for point in report["points"]]


def _mean_over_layers(point: Values, kind: str) -> float:
    """NaN where a point has no such token: matplotlib leaves a gap."""
    found = point["tokens"].get(kind, {}).get("gradient_mean", [])[:-1]
    values = [one["value"] for one in found if one["value"]]
    return float(np.exp(np.mean(np.log(values)))) if values else float("nan")


def _band(axes: Any, places: Sequence[int], found: Sequence[Values], label: str, color: str, style: str = "-") -> None:
    kept = [(place, one) for place, one in zip(places, found, strict=True) if one["value"]]
    if not kept:
        return
    at = [place for place, _ in kept]
    axes.plot(at, [one["value"] for _, one in kept], f"{style}o", ms=3, color=color, label=label)
    low, high = ([one["value"] if one[end] is None else one[end] for _, one in kept] for end in ("low", "high"))
    axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)


def _scaled(axes: Any) -> None:
    """A logarithmic height, where anything is drawn: matplotlib warns of an empty one."""
    if axes.lines:
        axes.set_yscale("log")
