"""The plots of a sweep: accuracy over latency, and what replay costs. See svg.py for the strokes."""

import itertools
from collections.abc import Mapping
from typing import Any

from lrkit.profile.pages.markdown import ms, percent
from lrkit.profile.pages.svg import Scale, axis, dot, line, svg, text, ticks

Values = Mapping[str, Any]


def pareto_plot(sweep: Values) -> str:
    """Accuracy over latency; settings that no other beats are filled."""
    points = [p for p in sweep["points"] if p["latency_sec"] is not None]
    if not points or all(p["accuracy"] is None for p in points):
        return ""
    slowest = 1000 * max(p["latency_sec"] for p in points)
    rights = [100 * (p["accuracy"] or 0.0) for p in points]
    low, high = max(0.0, min(rights) - 5), min(100.0, max(rights) + 5)
    across, height = Scale(0, 1.1 * slowest, 9, 98), 260
    up = Scale(low, high, height, 12)
    parts = [line(9, up(t), 98, up(t), "grid") + text(8, up(t) + 4, f"{t:g}%", "end") for t in ticks(low, high)]
    for p in points:
        css = "r0" if p["pareto"] else "hollow"
        name = f"{p['run']}: {percent(p['accuracy'])}, {ms(p['latency_sec'])} ms"
        x, y = across(1000 * p["latency_sec"]), up(100 * (p["accuracy"] or 0.0))
        parts.append(dot(x, y, 6 if p["run"] == sweep["use"] else 4.5, css, name))
        if p["run"] == sweep["use"]:
            parts.append(
                text(x + (2 if x < 60 else -2), y - 9, f"use {p['run']}", "start" if x < 60 else "end", "label")
            )
    parts.append(axis(ticks(0, 1.1 * slowest), across, height + 24, top=height, unit="ms"))
    return svg(height + 30, *parts, label="accuracy over latency of the settings")


def replay_plot(found: Values) -> str:
    """Latency over the number of replayed tokens, with the chain of thought they replace as a line across."""
    tried = {int(number): 1000 * ratio * found["cot_sec"] for number, ratio in found["latency_over_cot"].items()}
    chain = 1000 * found["cot_sec"]
    height, highest = 200, 1.12 * max(chain, *tried.values())
    across, up = Scale(0, 1.05 * max(tried), 9, 98), Scale(0, highest, height, 10)
    parts = [line(9, up(t), 98, up(t), "grid") + text(8, up(t) + 4, f"{t:g}", "end") for t in ticks(0, highest)]
    parts += [line(9, up(chain), 98, up(chain), "chain", f"chain of thought {chain:.0f} ms")]
    parts.append(text(97.5, up(chain) - 7, f"chain of thought, {ms(found['cot_sec'])} ms", "end", "label"))
    places = [(across(number), up(value), number, value) for number, value in tried.items()]
    for (x1, y1, *_), (x2, y2, *_) in itertools.pairwise(places):
        parts.append(line(x1, y1, x2, y2, "path"))
    parts += [dot(x, y, 5, "r0", f"{number} replayed: {value:.1f} ms") for x, y, number, value in places]
    parts.append(axis(list(tried), across, height + 24, top=height, unit="tokens a step"))
    return svg(height + 30, *parts, label="latency in milliseconds over replayed tokens a step")
