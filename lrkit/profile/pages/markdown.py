"""Renders a report as Markdown: the tables, for a repository or a mail."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lrkit.errors import clean
from lrkit.profile.judge.sweep import replay_sentence

Values = Mapping[str, Any]


def render_markdown(report: Values) -> str:
    """The whole page."""
    parts = [
        f"# {plain(title(report))}",
        "\n\n".join(f"**{plain(said)}**" for said in report["headlines"]),
        report["partial"] and "**Partial: the measurement was interrupted; figures are of what was done by then.**",
        f"Made by {_code(report['command'])}." if report["command"] else None,
        machine_lines(report),
        "## Runs",
        _runs(report["runs"]),
        "## Against the latent run",
        "Ratios are run / reference, above 1 where the reference is better; intervals are 95%, paired by question.",
        _pairs(report["pairs"]),
        "## Phases",
        f"Median milliseconds. {_sources(report['runs'])}",
        _phases(report["runs"]),
        "## Ceilings",
        "The least time by bytes read and operations done, at the rates measured beside it, as a share of the measured "
        "median; what binds stands behind it. Behind that: the same share, if products went at the rate of the fastest "
        "float type that the machine has.",
        _ceilings(report["runs"]),
        _sweep(report["sweep"]),
        _plan(report["plan"]),
        _notes(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_SOURCES = {
    "inside": "timed inside the engine",
    "host": "timed by the host's loop, the vision tower by a run without the picture",
    "differences": "by differences of runs that stop early (without picture, without latents, after each latent step)",
}


def _sources(runs: Sequence[Values]) -> str:
    """How the phases were found, each way once."""
    ways: dict[str, list[str]] = {}
    for run in runs:
        ways.setdefault(run["summary"]["phase_source"], []).append(run["id"])
    if len(ways) == 1:
        return f"All runs: {_SOURCES[next(iter(ways))]}."
    return "; ".join(f"{', '.join(names)}: {_SOURCES[way]}" for way, names in ways.items()) + "."


def title(report: Values) -> str:
    """Names of the models and their engines."""
    return "Profile of " + ", ".join(f"{model['name']} ({how_it_runs(model)})" for model in report["models"])


def how_it_runs(model: Values) -> str:
    """Engine, number type and device of one model of a report."""
    graphs = ", CUDA graphs" if model.get("cuda_graphs") else ""  # earlier reports do not say
    kernels = model.get("attention")
    attention = "" if kernels in (None, "sdpa") else f", attention {kernels}"
    return f"{model['engine']}, {model['precision']}, {model['device']}{graphs}{attention}"


def machine_lines(report: Values) -> str:
    """Where and with what it was measured, one line each."""
    made, machine, suite = report["provenance"], report["machine"], report["suite"]
    threads = ", ".join(sorted({str(run["threads"] or "engine's choice") for run in report["runs"]}))
    count = sum(len({row["sample"] for row in run["rows"]}) for run in report["runs"][:1])
    load = " to ".join(_load(machine[when]) for when in ("at_start", "at_end"))
    share, timer = report["timer"]["share"], report["timer"]
    rows = {
        "CPU": f"{made['cpu'] or 'unknown'}, {made['num_cpus']} usable; threads: {threads}",
        "GPU": ", ".join(f"{gpu['name']}, driver {gpu['driver'] or 'unknown'}" for gpu in machine["gpus"]) or "none",
        "load average": f"{load} (1 minute; above the number of CPUs the machine was busy with other work)",
        "measured": f"{count} questions, {report.get('repeats', suite['repeats'])} times each, batch 1, "
        f"{suite['warmup']} warm-up rounds, runs interleaved",
        "clock": "unknown"
        if share is None
        else f"{share:.4%} of the smallest phase ({timer['smallest_phase']}, {ms(timer['smallest_phase_sec'])} ms)",
        "software": f"lrkit {made['lrkit']} ({(made['git_commit'] or 'no commit')[:12]}), Python {made['python']}, "
        + ", ".join(f"{name} {made['packages'][name]}" for name in ("torch", "onnxruntime") if made["packages"][name]),
        "time": made["time_utc"],
    }
    return "\n".join(f"- {name}: {clean(value)}" for name, value in rows.items())


def ms(seconds: float | None) -> str:
    """Milliseconds with three digits that mean something; unknown stays unknown."""
    if seconds is None:
        return "-"
    value = 1000 * seconds
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def number(value: float | None, digits: int = 1) -> str:
    """A figure; unknown stays unknown."""
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share; unknown stays unknown."""
    return "-" if value is None else f"{100 * value:.1f}%"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    lines = [list(map(plain, head)), ["---", *("--:" for _ in head[1:])], *(map(plain, row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain(text: str) -> str:
    """A name or an answer as Markdown that shows it as it stands: no cell, tag, link or emphasis of its own."""
    return re.sub(r"([|<\[*`])", r"\\\1", clean(text))


def _code(text: str) -> str:
    """Text as code, whatever backticks it holds."""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{fence} {clean(text)} {fence}" if "`" in text else f"{fence}{clean(text)}{fence}"


def _load(state: Values) -> str:
    return "unknown" if state["load_average"] is None else f"{state['load_average'][0]:.1f}"


def _runs(runs: Sequence[Values]) -> str:
    head = (
        "run",
        "right",
        "AR steps",
        "latent",
        "spoken",
        "replayed",
        "median ms",
        "p95 ms",
        "first token ms",
        "failed",
    )
    rows: list[list[str]] = []
    for run in runs:
        s = run["summary"]
        means = [number(s[name]["mean"]) for name in ("ar_steps", "latent_steps", "spoken_tokens", "replayed_tokens")]
        times = [ms(s["latency_sec"]["median"]), ms(s["latency_sec"]["p95"]), ms(s["first_token_sec"]["median"])]
        failed = f"{s['failures']} of {s['answers']}"
        rows.append([run["id"], percent(s["accuracy"]["value"]), *means, *times, failed])
    return table(head, rows)


def interval(found: Values | None, factor: float = 1.0, digits: int = 2) -> str:
    """value (low to high)."""
    value = None if found is None else found.get("value", found.get("difference"))
    if found is None or value is None:
        return "-"
    if found["low"] is None:
        return number(factor * value, digits)
    low, high = (number(factor * found[key], digits) for key in ("low", "high"))
    return f"{number(factor * value, digits)} ({low} to {high})"


def _pairs(pairs: Sequence[Values]) -> str | None:
    if not pairs:
        return "No pair was measured."
    rows = [
        [
            f"{pair['run']} / {pair['reference']}",
            interval(pair.get("time_ratio")),
            interval(pair["latency_ratio"]),
            interval(pair["ar_steps_ratio"]),
            interval(pair["accuracy_difference"], 100, 1),
            number((pair["accuracy_difference"] or {}).get("p_value"), 3),
        ]
        for pair in pairs
    ]
    head = ("run / reference", "time in all", "latency", "AR steps", "reference more accurate by, points", "McNemar p")
    return table(head, rows)


def _phases(runs: Sequence[Values]) -> str:
    names = ("preprocess", "vision", "prefill", "think", "speak", "other")
    rows = [
        [
            run["id"],
            *(ms(run["summary"]["phases_sec"].get(name, {}).get("median")) for name in names),
            ms(run["summary"]["latent_step_sec"]["median"]),
            ms(run["summary"]["token_sec"]["median"]),
        ]
        for run in runs
    ]
    return table(("run", *names, "a latent step", "a token"), rows)


def _ceilings(runs: Sequence[Values]) -> str:
    names = ("vision", "prefill", "think", "speak")
    rows = []
    for run in runs:
        found: Values = run["ceilings"] or {}
        cells = [_of_ceiling(found[name]) if name in found else "-" for name in names]
        rows.append([run["id"], *cells])
    return table(("run", *names), rows)


def _of_ceiling(found: Values) -> str:
    """Also of the machine's fastest float type, which reports of an earlier lrkit do not have."""
    own = f"{percent(found['share_of_ceiling'])} {found['binds']}"
    share = found.get("share_of_machine")
    return own if share is None else f"{own}; {percent(share)} of {found['machine_type']}"


def _sweep(sweep: Values | None) -> str | None:
    if sweep is None:
        return None
    rows = [
        [p["run"], percent(p["accuracy"]), ms(p["latency_sec"]), number(p["ar_steps"]), "yes" if p["pareto"] else ""]
        for p in sweep["points"]
    ]
    return (
        "## Sweep\n\n"
        + table(("setting", "right", "median ms", "AR steps", "not beaten"), rows)
        + f"\n\nUse **{plain(str(sweep['use']))}**: {plain(sweep['why'])}."
        + (f"\n\n{replay_sentence(sweep['replay_against_cot'])}." if sweep.get("replay_against_cot") else "")
    )


def sheet_source(sheet: Values) -> str:
    """Where a datasheet's figures come from, and which of them nobody could compare."""
    unchecked = sheet.get("unchecked") or ()
    return sheet["source"] + (f"; not checked: {', '.join(unchecked)}" if unchecked else "")


def _plan(plans: Sequence[Values]) -> str | None:
    if not plans:
        return None
    runs = list(plans[0]["least_sec"])
    rows = [
        [p["sheet"]["description"], *(ms(p["least_sec"][run]) for run in runs), sheet_source(p["sheet"])] for p in plans
    ]
    return "## Planning, from datasheets (not measured)\n\nLeast milliseconds by memory and arithmetic.\n\n" + table(
        ("device", *runs, "source"), rows
    )


def _notes(report: Values) -> str | None:
    notes = [f"- {plain(run['id'])}: {plain(run['note'])}" for run in report["runs"] if run["note"]]
    notes += [f"- {plain(item['run'])} was skipped: {plain(item['reason'])}" for item in report["skipped"]]
    notes += [
        f"- {plain(run['id'])}: {count} answers failed: {plain(error)}"
        for run in report["runs"]
        for error, count in run["summary"]["errors"].items()
    ]
    return "## Notes\n\n" + "\n".join(notes) if notes else None
