"""Renders a report as one HTML page that needs nothing else: no script, no font, no network. Its looks: style.css."""

from collections.abc import Mapping, Sequence
from typing import Any

from lrkit.profile.judge.sweep import replay_sentence
from lrkit.profile.pages import charts, heat, plots
from lrkit.profile.pages.markdown import how_it_runs, interval, machine_lines, ms, number, percent, sheet_source, title
from lrkit.profile.pages.page import html_table, page, section
from lrkit.profile.pages.svg import escape

Values = Mapping[str, Any]


def render_html(report: Values) -> str:
    """The whole page."""
    every = report["runs"]
    runs = _drawn(every, report["sweep"])
    sources = {run["summary"]["phase_source"] for run in runs}
    body = [
        _head(report),
        section("Runs", _runs(every), "Means over all answers; latency end to end at batch 1, preprocessing included."),
        section("Against the latent run", _pairs(report["pairs"]), _PAIRS),
        _sweep(report["sweep"]),
        section("Where the time goes", charts.phase_bars(runs), _phase_note(sources, len(runs) < len(every))),
        section(
            "Latency", charts.latency_strips(runs), "Every answer is a dot; the line is the median, the short one p95."
        ),
        section("Autoregressive steps", charts.step_histograms(runs), _STEPS),
        section("Routed depth by layer", heat.depth_map(runs), _DEPTHS),
        section("Routed depth by layer and token", heat.token_maps(runs), _TOKENS),
        section("Against the ceiling", charts.ceiling_bars(runs), _CEILINGS),
        _plan(report["plan"]),
        _gallery(report["examples"]),
        _notes(report),
        section("How it was measured", _machine(report)),
    ]
    return page(title(report), body)


_SOURCES = {
    "inside": "Torch runs are timed inside the engine, waiting for the device at the end of each phase.",
    "host": "Programs of the form step are timed by the host's loop; the vision tower, which is in the prompt's graph, "
    "by running the prompt with words in place of the picture.",
    "differences": "One-graph programs are told apart by differences of runs of fixed length: without the picture, "
    "with it, with each latent step, in full. Differences of small phases are noisy.",
}
_PAIRS = "Ratios above 1: the latent run is better. Intervals are 95%, paired by question."
_STEPS = "Sequential passes of the language model after the prefill: latent steps, and spoken tokens that are fed back."
_DEPTHS = "Extra passes of routed tokens through a layer, mean over the answers; prompt and latent steps together."
_TOKENS = (
    "Mean extra passes of a token: layers from top to bottom, tokens from left to right, first the prompt, then the "
    "latent steps by number, each with its replayed tokens and, last, its latent. A column is a token, or several "
    "where they are too many."
)
_CEILINGS = (
    "The bar is the share of the measured time that reading the weights once per pass and doing the products must "
    "take, at the rates measured on this device in the same run. Small models stay far below: the "
    "rest is what runs around them."
)


def _drawn(runs: Sequence[Values], sweep: Values | None) -> list[Values]:
    """Of a sweep only the setting to use is drawn beside the suite's runs: its points have plots of their own."""
    points = {point["run"] for point in sweep["points"]} - {sweep["use"]} if sweep else set[str]()
    return [run for run in runs if run["id"] not in points] or list(runs)


def _phase_note(sources: set[str], left_out: bool) -> str:
    words = ["Means.", *(_SOURCES[name] for name in sorted(sources))]
    return " ".join(words) + (" Of the sweep only the setting to use is drawn here and below." if left_out else "")


def _head(report: Values) -> str:
    warn = '<p class="warn">Partial: the measurement was interrupted.</p>' if report["partial"] else ""
    said = report["headline"] or "No pair of a latent and a chain-of-thought run was measured."
    more = "".join(f'<p class="lead">{escape(line)}</p>' for line in report["headlines"][1:])
    models = "".join(f"<li>{escape(_model(model))}</li>" for model in report["models"])
    where = report["machine"]["gpus"][0]["name"] if report["machine"]["gpus"] else report["provenance"]["cpu"]
    top = f"lrkit profile &middot; {escape(str(where))} &middot; {escape(report['provenance']['time_utc'][:10])}"
    return (
        f'<header><p class="eyebrow">{top}</p><h1>{escape(said)}</h1>'
        f"{more}{warn}<ul>{models}</ul>{_tiles(report)}</header>"
    )


def _model(model: Values) -> str:
    size = model["bundle_bytes"] or sum(model["weight_bytes"].values())
    what = "bundle" if model["bundle_bytes"] else "weights"
    return f"{model['name']}: {how_it_runs(model)}, {what} {size / 1e6:.1f} MB"


def _tiles(report: Values) -> str:
    pair = next((p for p in report["pairs"] if p["mode"] == "cot" and p["reference_mode"] == "latent"), None)
    if pair is None:
        return ""
    difference = pair["accuracy_difference"]
    time = pair.get("time_ratio", pair["latency_ratio"])  # earlier reports had the latter alone
    tiles = [
        ("the chain's steps, over the latents'", pair["ar_steps_ratio"]["value"], "x", pair["ar_steps_ratio"], 1),
        ("the chain's time, over the latents'", time["value"], "x", time, 1),
    ]
    if difference is not None and difference["difference"] is not None:
        tiles.append(("points of accuracy", 100 * difference["difference"], "", difference, 100))
    cells: list[str] = []
    for name, value, unit, found, factor in tiles:
        shown = "-" if value is None else f"{value:+.1f}" if factor == 100 else f"{value:.1f}{unit}"
        low, high = found["low"], found["high"]
        bounds = "" if low is None or high is None else f"{factor * low:.1f} to {factor * high:.1f}"
        cells.append(f"<div><b>{shown}</b><span>{name}</span><small>{bounds}</small></div>")
    return f'<div class="tiles">{"".join(cells)}</div>'


def _runs(runs: Sequence[Values]) -> str:
    rows: list[list[str]] = []
    for run in runs:
        s = run["summary"]
        right = s["accuracy"]
        share = (
            "-"
            if right["value"] is None
            else f"{percent(right['value'])} ({percent(right['low'])} to {percent(right['high'])})"
        )
        means = [number(s[name]["mean"]) for name in ("ar_steps", "latent_steps", "spoken_tokens", "replayed_tokens")]
        latency = [ms(s["latency_sec"][key]) for key in ("median", "p90", "p95", "p99")]
        energy = number(s["energy_joule"]["mean"], 2)
        grown = "-" if s["rss_growth_bytes"] is None else f"{s['rss_growth_bytes'] / 1e6:.1f}"
        device = "-" if s["device_peak_bytes"] is None else f"{s['device_peak_bytes'] / 1e9:.2f}"
        first = ms(s["first_token_sec"]["median"])
        rows.append([run["id"], share, *means, *latency, first, grown, device, energy, str(s["failures"])])
    head = ["run", "right (95%)", "AR steps", "latent", "spoken", "replayed", "median ms", "p90", "p95", "p99"]
    head += ["first token ms", "memory growth MB", "device GB", "joule", "failed"]
    return html_table(head, rows)


def _pairs(pairs: Sequence[Values]) -> str | None:
    if not pairs:
        return None
    rows = [
        [
            f"{pair['run']} / {pair['reference']}", interval(pair.get("time_ratio")), interval(pair["latency_ratio"]),
            interval(pair["ar_steps_ratio"]), interval(pair["accuracy_difference"], 100, 1),
            number((pair["accuracy_difference"] or {}).get("p_value"), 3),
        ]
        for pair in pairs
    ]  # fmt: skip
    head = ("run / reference", "time in all", "latency", "AR steps", "reference more accurate by, points", "McNemar p")
    return html_table(head, rows)


def _sweep(sweep: Values | None) -> str:
    if sweep is None:
        return ""
    note = f"Use {sweep['use']}: {sweep['why']}."
    pareto, replayed = plots.pareto_plot(sweep), sweep.get("replay_against_cot")
    note += " Accuracy over latency; filled: not beaten in both." if pareto else ""
    found = section("Settings", pareto, note)
    if replayed:
        note = f"{replay_sentence(replayed)}. Median milliseconds of an answer."
        found += section("What replay costs", plots.replay_plot(replayed), note)
    return found


def _plan(plans: Sequence[Values]) -> str:
    if not plans:
        return ""
    runs = list(plans[0]["least_sec"])
    rows = [
        [p["sheet"]["description"], *(ms(p["least_sec"][run]) for run in runs), sheet_source(p["sheet"])] for p in plans
    ]
    note = "From datasheets, for planning; nothing here was measured. Least milliseconds by memory and arithmetic."
    return section("Other devices", html_table(("device", *runs, "source"), rows), note)


def _gallery(examples: Sequence[Values]) -> str:
    cards: list[str] = []
    for example in examples:
        said = "".join(
            f"<dt>{escape(run)}, {escape(str(answer['ar_steps']))} steps</dt><dd>{escape(answer['text'])}</dd>"
            for run, answer in example["answers"].items()
        )
        trace = example["trace_png"]
        image = (
            f'<img alt="where each latent step looked" src="data:image/png;base64,{escape(trace)}">' if trace else ""
        )
        question = f"{escape(example['question'])} <span>(right: {escape(example['expected'])})</span>"
        cards.append(f"<article><h3>{question}</h3>{image}<dl>{said}</dl></article>")
    return section("Examples", "".join(cards)) if cards else ""


def _notes(report: Values) -> str:
    notes = [f"{run['id']}: {run['note']}" for run in report["runs"] if run["note"]]
    notes += [f"{item['run']} was skipped: {item['reason']}" for item in report["skipped"]]
    for run in report["runs"]:
        notes += [f"{run['id']}: {n} answers failed: {error}" for error, n in run["summary"]["errors"].items()]
    return section("Notes", "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>") if notes else ""


def _machine(report: Values) -> str:
    items = [line.removeprefix("- ").partition(": ") for line in machine_lines(report).splitlines()]
    command = f"<dt>command</dt><dd><code>{escape(report['command'])}</code></dd>" if report["command"] else ""
    return (
        f"<dl>{command}{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, _, value in items)}</dl>"
    )
