"""Small drawings for the HTML report, as inline SVG.

Horizontal places are percentages and vertical ones pixels, so a drawing fills its column on any screen while its text
keeps its size. Colours are classes, so that light and dark are a matter of the style sheet.
"""

import math
from collections.abc import Sequence
from html import escape as escape_tags

from lrkit.errors import clean


def escape(text: str) -> str:
    """Text that shows as it stands: no tags of its own, no control characters and no changes of direction."""
    return escape_tags(clean(text))


def svg(height: float, *parts: str, label: str) -> str:
    """A drawing as wide as its column; `label` says to a screen reader what it shows."""
    return f'<svg height="{height:g}" width="100%" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def labelled(label: str, drawing: str, note: str = "") -> str:
    """One row of a chart: name, drawing, figure."""
    return (
        f'<div class="row"><div class="name">{escape(label)}</div><div>{drawing}</div>'
        f'<div class="figure">{escape(note)}</div></div>'
    )


def legend(items: Sequence[tuple[str, str]]) -> str:
    """(class, name) pairs."""
    spans = "".join(f'<span><i class="{escape(css)}"></i>{escape(name)}</span>' for css, name in items)
    return f'<div class="legend">{spans}</div>'


def rect(x: float, y: float, width: float, height: float, css: str, title: str = "") -> str:
    """A bar from `x` percent, `width` percent wide; `title` shows under the pointer."""
    place = f'x="{x:.2f}%" y="{y:g}" width="{max(0.0, width):.2f}%" height="{height:g}"'
    return f'<rect {place} class="{escape(css)}">{_title(title)}</rect>'


def dot(x: float, y: float, radius: float, css: str, title: str = "") -> str:
    """A circle."""
    return f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="{radius:g}" class="{escape(css)}">{_title(title)}</circle>'


def line(x1: float, y1: float, x2: float, y2: float, css: str, title: str = "") -> str:
    """A straight line."""
    place = f'x1="{x1:.2f}%" y1="{y1:g}" x2="{x2:.2f}%" y2="{y2:g}"'
    return f'<line {place} class="{escape(css)}">{_title(title)}</line>'


def text(x: float, y: float, words: str, anchor: str = "start", css: str = "tick") -> str:
    """Words; `anchor` is start, middle or end."""
    return f'<text x="{x:.2f}%" y="{y:g}" text-anchor="{anchor}" class="{escape(css)}">{escape(words)}</text>'


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values between `low` and `high`."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    rough = span / about
    power = 10 ** math.floor(math.log10(rough))
    step = power * min((factor for factor in (1, 2, 5, 10) if factor * power >= rough), default=10)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def axis(values: Sequence[float], scale: "Scale", y: float, top: float = 0.0, unit: str = "") -> str:
    """Tick labels at height `y`, with faint lines up to `top`."""
    parts: list[str] = []
    for index, value in enumerate(values):
        place = scale(value)
        last = f" {unit}" if unit and index == len(values) - 1 else ""
        # A unit of several words would run over the edge of a narrow page.
        near = 80 if len(last) > 8 else 96
        anchor = "start" if place < 4 else "end" if place > near else "middle"
        parts.append(line(place, top, place, y - 13, "grid"))
        parts.append(text(place, y, f"{value:g}{last}", anchor))
    return "".join(parts)


class Scale:
    """Values to percent of the width."""

    def __init__(self, low: float, high: float, left: float = 0.0, right: float = 100.0) -> None:
        self.low, self.high = low, high if high > low else low + 1.0
        self.left, self.right = left, right

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.left + min(1.0, max(0.0, share)) * (self.right - self.left)


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""
