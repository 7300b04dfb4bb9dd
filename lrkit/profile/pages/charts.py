"""The bars of a report: phases, latencies, steps, ceilings. Plots: plots.py; heat maps: heat.py; strokes: svg.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from lrkit.profile.pages.markdown import ms, number, percent
from lrkit.profile.pages.svg import Scale, axis, dot, labelled, legend, line, rect, svg, ticks

Values = Mapping[str, Any]

PHASE_NAMES = {
    "preprocess": "preprocessing",
    "vision": "vision tower",
    "prefill": "prefill",
    "think": "latent steps",
    "speak": "speech",
    "other": "other",
}
_ORDER = tuple(PHASE_NAMES)
_BAR = 26


def phase_bars(runs: Sequence[Values]) -> str:
    """A bar per run, its phases one after the other, all on one scale."""
    found = {run["id"]: _phases(run) for run in runs}
    longest = max((sum(phases.values()) for phases in found.values()), default=0.0)
    scale = Scale(0, 1000 * longest)
    rows: list[str] = []
    for run in runs:
        place, parts = 0.0, list[str]()
        for name, seconds in found[run["id"]].items():
            width = scale(1000 * seconds)
            parts.append(rect(place, 3, width, _BAR - 6, f"p-{name}", f"{PHASE_NAMES[name]}: {ms(seconds)} ms"))
            place += width
        total = sum(found[run["id"]].values())
        rows.append(labelled(run["id"], svg(_BAR, *parts, label=f"phases of {run['id']}"), f"{ms(total)} ms"))
    marks = svg(18, axis(ticks(0, 1000 * longest), scale, 14, unit="ms"), label="scale in milliseconds")
    used = [name for name in PHASE_NAMES if any(name in phases for phases in found.values())]
    return legend([(f"p-{name}", PHASE_NAMES[name]) for name in used]) + "".join(rows) + labelled("", marks)


def latency_strips(runs: Sequence[Values]) -> str:
    """Every answer a dot; the median a line, p95 a shorter one."""
    longest = max((run["summary"]["latency_sec"]["max"] or 0.0 for run in runs), default=0.0)
    scale = Scale(0, 1000 * longest, 1, 99)
    rows: list[str] = []
    for index, run in enumerate(runs):
        latency = run["summary"]["latency_sec"]
        seconds = [row["seconds"]["total"] for row in run["rows"] if row["error"] is None]
        # A fixed scatter of heights, so that dots at the same place can be told apart.
        kept = seconds[:: max(1, len(seconds) // 400)]
        dots = [dot(scale(1000 * s), 6 + (i * 7919 % 17), 2.4, f"r{index % 8} soft") for i, s in enumerate(kept)]
        lines = [
            line(
                scale(1000 * latency[key]),
                top,
                scale(1000 * latency[key]),
                28 - top,
                css,
                f"{key} {ms(latency[key])} ms",
            )
            for key, top, css in (("median", 0, "mark"), ("p95", 6, "mark thin"))
            if latency[key] is not None
        ]
        note = f"{ms(latency['median'])} ms, p95 {ms(latency['p95'])}"
        rows.append(labelled(run["id"], svg(30, *dots, *lines, label=f"latencies of {run['id']}"), note))
    marks = svg(18, axis(ticks(0, 1000 * longest), scale, 14, unit="ms"), label="scale in milliseconds")
    return "".join(rows) + labelled("", marks)


def step_histograms(runs: Sequence[Values]) -> str:
    """Autoregressive steps per answer, one small histogram per run on one scale of steps."""
    most = max((int(step) for run in runs for step in run["summary"]["ar_steps_histogram"]), default=0)
    scale = Scale(0, most + 1)
    rows: list[str] = []
    for index, run in enumerate(runs):
        counts = {int(step): count for step, count in run["summary"]["ar_steps_histogram"].items()}
        tallest, width = max(counts.values(), default=1), scale(1) - scale(0)
        bars = [
            rect(
                scale(step) + 0.1 * width, 42 - 38 * count / tallest, max(0.35, 0.8 * width), 38 * count / tallest,
                f"r{index % 8}", f"{count} answers of {step} steps",
            )
            for step, count in counts.items()
        ]  # fmt: skip
        base = line(0, 42, 100, 42, "grid")
        note = f"mean {number(run['summary']['ar_steps']['mean'])}"
        rows.append(labelled(run["id"], svg(44, base, *bars, label=f"steps of {run['id']}"), note))
    marks = svg(18, axis([t for t in ticks(0, most + 1) if t == int(t)], scale, 14, unit="steps"), label="steps")
    return "".join(rows) + labelled("", marks)


def ceiling_bars(runs: Sequence[Values]) -> str | None:
    """Per run and phase: how much of the measured time the ceiling explains; None where none could be measured."""
    rows: list[str] = []
    for run in runs:
        for name, found in sorted((run["ceilings"] or {}).items(), key=lambda item: _ORDER.index(item[0])):
            share = found["share_of_ceiling"]
            if share is None:
                continue
            bar = [rect(0, 6, 100, 10, "track"), rect(0, 6, min(100.0, 100 * share), 10, f"b-{found['binds']}")]
            note = f"{percent(share)}, {ms(found['ceiling_sec'])} of {ms(found['measured_sec'])} ms"
            if found.get("share_of_machine") is not None:
                note += f"; {percent(found['share_of_machine'])} of the {found['machine_type']} ceiling"
            drawing = svg(22, *bar, label=f"{run['id']} {name}: {percent(share)} of the ceiling")
            rows.append(labelled(f"{run['id']} {PHASE_NAMES[name]}", drawing, note))
    if not rows:
        return None
    kinds = [("b-memory", "memory binds"), ("b-compute", "arithmetic binds"), ("b-overhead", "mostly overhead")]
    return legend(kinds) + "".join(rows)


def _phases(run: Values) -> dict[str, float]:
    """Mean seconds, so that the phases of a run add up; never below zero."""
    found = run["summary"]["phases_sec"]
    return {name: max(0.0, found[name]["mean"]) for name in PHASE_NAMES if name in found}
