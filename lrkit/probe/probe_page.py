"""A probe's report as one HTML page with its plots. Strokes: lrkit/profile/pages/svg.py."""

import itertools
from collections.abc import Mapping
from typing import Any

from lrkit.probe.options import PART_MEANINGS
from lrkit.probe.probe_markdown import headline, what_was_asked
from lrkit.probe.probe_rows import (
    HEAD,
    SIGN_HEAD,
    STEP_HEAD,
    WORD_HEAD,
    effect_rows,
    sentences,
    sign_rows,
    step_rows,
    word_rows,
)
from lrkit.profile.pages.markdown import number, percent
from lrkit.profile.pages.page import html_table, page, section
from lrkit.profile.pages.svg import Scale, axis, dot, escape, labelled, legend, line, rect, svg, text, ticks

Values = Mapping[str, Any]

_SHADES = 8
_ACCURACY = (
    "Over all questions; what takes no latent step keeps its answer. Direct: the model that was trained to answer at "
    "once, or this one asked to."
)
_STEPS = "Share of right answers, and for patched latents of answers that became the donor's."
_MOVED = (
    "Rows: the hop whose sign was changed. Columns: latent steps. Darker: the state that the step starts from moved "
    "further, in lengths of the state."
)
_KINDS = {"truncated": "r1", "frozen": "r3", "patched": "r0"}


def render_html(report: Values) -> str:
    """The whole page; the sentence of the verdict is its headline."""
    signs = "sign" in report["input"]
    left_out = "".join(f"<li>{escape(one['part'])}: {escape(one['reason'])}</li>" for one in report["left_out"])
    body = [
        _head(report),
        section("Accuracy", _accuracy(report), _ACCURACY),
        section("Other latents", html_table(HEAD, effect_rows(report)), "Intervals are 95%, paired by question."),
        section("Step by step", _steps(report) + html_table(STEP_HEAD, step_rows(report)), _STEPS)
        if report["by_step"]
        else "",
        section("Another sign in the picture", _moved(report) + html_table(SIGN_HEAD, sign_rows(report)), _MOVED)
        if signs
        else "",
        section("What each latent says", html_table(WORD_HEAD, word_rows(report))) if report["words"] else "",
        section("Left out", f"<ul>{left_out}</ul>") if left_out else "",
    ]
    return page(headline(report), body)


def _head(report: Values) -> str:
    top = f"lrkit probe &middot; {escape(report['model'])} &middot; {escape(report['data'])}"
    said = "".join(f'<p class="lead">{escape(one)}</p>' for one in sentences(report))
    asked = f'<p class="note">{escape(what_was_asked(report))}</p>'
    return f'<header><p class="eyebrow">{top}</p><h1>{escape(headline(report))}</h1>{said}{asked}</header>'


def _accuracy(report: Values) -> str:
    """A bar for each."""
    scale = Scale(0, 100)
    rows: list[str] = []
    for index, (name, value) in enumerate(report["accuracy"].items()):
        bar = rect(0, 4, scale(100 * (value or 0.0)), 16, f"r{index % 8}", f"{name}: {percent(value)}")
        meaning = str(PART_MEANINGS.get(name, name))
        rows.append(
            labelled(meaning, svg(24, rect(0, 4, 100, 16, "track"), bar, label=f"accuracy: {meaning}"), percent(value))
        )
    return "".join(rows) + labelled("", svg(18, axis(ticks(0, 100), scale, 14, unit="%"), label="scale in percent"))


def _steps(report: Values) -> str:
    """Shares over the step, a line for each intervention."""
    lines = {
        name: [(int(step), one["followed" if name == "patched" else "right"]["value"]) for step, one in by_step.items()]
        for name, by_step in report["by_step"].items()
    }
    known = {name: [(step, share) for step, share in points if share is not None] for name, points in lines.items()}
    most = max((step for points in known.values() for step, _ in points), default=1)
    height, across = 200, Scale(0, most, 9, 97)
    up = Scale(0, 100, height, 10)
    parts = [line(9, up(t), 97, up(t), "grid") + text(8, up(t) + 4, f"{t:g}%", "end") for t in ticks(0, 100)]
    for name, points in known.items():
        places = [(across(step), up(100 * share), step, share) for step, share in points]
        parts += [line(x1, y1, x2, y2, "mark thin") for (x1, y1, *_), (x2, y2, *_) in itertools.pairwise(places)]
        parts += [dot(x, y, 5, _KINDS[name], f"{name} {step}: {percent(share)}") for x, y, step, share in places]
    parts.append(axis(list(range(most + 1)), across, height + 24, top=height, unit="step"))
    marks = [(_KINDS[name], PART_MEANINGS[name]) for name in known]
    return legend(marks) + svg(height + 30, *parts, label="shares over the latent step")


def _moved(report: Values) -> str:
    """A heat map: hops down, latent steps across."""
    by_hop = report["input"]["sign"]["by_hop"]
    columns = max((len(one["distance_by_step"]) for one in by_hop.values()), default=0)
    if not columns:
        return ""
    most = max(value or 0.0 for one in by_hop.values() for value in one["distance_by_step"]) or 1.0
    width = 100 / columns
    rows: list[str] = []
    for hop, one in by_hop.items():
        cells: list[str] = []
        for step, value in enumerate(one["distance_by_step"]):
            shade = round(_SHADES * (value or 0.0) / most)
            ink = "on-dark" if shade > _SHADES / 2 else "on-light"
            cells.append(
                rect(
                    step * width, 2, width - 0.4, 24, f"heat{shade}", f"hop {hop}, step {step + 1}: {number(value, 2)}"
                )
            )
            cells.append(text((step + 0.5) * width, 18, number(value, 2), "middle", f"tick {ink}"))
        rows.append(labelled(f"sign of hop {hop}", svg(28, *cells, label=f"sign of hop {hop}")))
    names = [text((i + 0.5) * width, 13, f"step {i + 1}" if i == 0 else str(i + 1), "middle") for i in range(columns)]
    return "".join(rows) + labelled("", svg(18, *names, label="latent steps"))
