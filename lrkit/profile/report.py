"""The report: one JSON document with everything, from which Markdown and HTML are rendered.

Place in the pipeline: measure/rounds.py, statistics.py, roofline.py -> `build_report` -> report_file.py, markdown.py,
html.py. The keys are explained in profiles/README.md; a change of their meaning raises `SCHEMA`.
"""

import base64
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lrkit.contract.sample import Sample
from lrkit.environment import onnxruntime_providers
from lrkit.errors import LrkitError
from lrkit.gpus import find_gpus
from lrkit.profile.ceilings.devices import load_sheet, plan
from lrkit.profile.ceilings.number_types import fastest_float
from lrkit.profile.ceilings.rates import MeasuredRates, measure_rates
from lrkit.profile.ceilings.roofline import Work, ceilings, phase_work
from lrkit.profile.judge.engines import engine_sentences
from lrkit.profile.judge.statistics import COUNTERS, compare_runs, summarize_run
from lrkit.profile.measure.cases import Case, Cases, Model, ended_early
from lrkit.profile.measure.meters import clock_cost, machine_state
from lrkit.profile.measure.rounds import Row, Session
from lrkit.profile.measure.suite import Suite
from lrkit.provenance import collect, installed_version, memory_bytes
from lrkit.runtime.engines.common.model_counts import ModelCounts

SCHEMA = 1
Report = dict[str, Any]
_TRACE_WIDTH, _TRACE_COLORS = 900, 48
"""Traces are kept small: an HTML report must stay below 2 MB."""


@dataclass
class Context:
    """What a report needs beside the measurements."""

    suite: Suite
    models: Sequence[Model]
    cases: Cases
    samples: Sequence[Sample]
    command: str
    started: Mapping[str, Any]
    """`machine_state()` before the first question."""
    plan_for: Sequence[str] = ()
    """Device sheets."""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """More keys of the report, such as the sweep."""


def build_report(context: Context, session: Session) -> Report:
    """Everything, as plain JSON values."""
    cases = context.cases.cases
    runs = [_run(case, session, context.suite) for case in cases]
    counted = {case.id: case.engine.counts() for case in cases}
    rates = _rates(context.models, cases, counted)
    work = {run["id"]: _work(counted[run["id"]], run["summary"]) for run in runs}
    for run, case in zip(runs, cases, strict=True):
        run["ceilings"] = _ceilings(run["summary"], work[case.id], rates[case.model])
    pairs = _pairs(cases, session)
    report: Report = {
        "schema": SCHEMA,
        "kind": "profile",
        "partial": session.partial,
        "headline": None,
        "headlines": [],
        "command": context.command,
        "suite": context.suite.model_dump(mode="json"),
        "repeats": session.repeats,
        "models": [_model(model, rates[index]) for index, model in enumerate(context.models)],
        "machine": _machine(context.started),
        "timer": _timer(runs),
        "energy_source": session.energy_source,
        "skipped": context.cases.skipped,
        "runs": runs,
        "pairs": pairs,
        "plan": [plan(name, load_sheet(name), work) for name in context.plan_for],
        "sweep": None,
        "examples": [] if session.partial else _examples(cases, context.samples[: context.suite.gallery]),
        **context.extra,
        "provenance": collect(),
    }
    report["figures"] = figures(report)
    programs = [model.reasoner.engine.entry for model in context.models]
    report["headlines"] = headlines(report) + engine_sentences(report["models"], programs, runs)
    report["headline"] = next(iter(report["headlines"]), None)
    return report


def headlines(report: Report) -> list[str]:
    """What latents bought over explicit steps, a sentence per model that was asked in both ways."""
    pairs = [p for p in report["pairs"] if p["mode"] == "cot" and p["reference_mode"] == "latent"]
    several = len(report["models"]) > 1
    # Of a model's runs in words the first: the others are variants of it, told by their own rows.
    first = {pair["reference"]: pair for pair in reversed(pairs)}
    told = [pair for pair in pairs if pair is first[pair["reference"]]]
    return [_headline(pair, several) for pair in told if pair["latency_ratio"]["value"] is not None]


def _headline(pair: Report, several: bool) -> str:
    steps, difference = pair["ar_steps_ratio"]["value"], pair["accuracy_difference"]
    # Steps are a ratio of totals, so the time beside them is one too; short chains gain less, so both ways are told.
    total, each = (_times_word(pair[name]["value"], "faster", "slower") for name in ("time_ratio", "latency_ratio"))
    fewer = "" if not steps else f"{_times_word(steps, 'fewer', 'more')} autoregressive steps, "
    model = pair["reference"].rpartition("/")[0]
    whose = f"{model}: " if several else ""
    sentence = f"{whose}latent against chain of thought: {fewer}{total} in all and {each} question by question"
    if difference is None or difference["difference"] is None:
        return sentence
    points, low, high = (100 * difference[key] for key in ("difference", "low", "high"))
    word = "equal accuracy" if points == 0 else f"{abs(points):.1f} points {'lower' if points < 0 else 'higher'}"
    return f"{sentence}, {word} (95% interval {low:+.1f} to {high:+.1f}, {pair['samples']} questions)"


def figures(report: Report) -> dict[str, dict[str, float | int | None]]:
    """run -> name -> value: what `--fail-if` may ask for. A pair is a run named cot_over_latent."""
    found: dict[str, dict[str, float | int | None]] = {}
    for run in report["runs"]:
        s = run["summary"]
        latency = {f"{key}_ms": _milli(s["latency_sec"][key]) for key in ("mean", "median", "p90", "p95", "p99", "max")}
        found[run["id"]] = {
            **latency,
            "first_token_ms": _milli(s["first_token_sec"]["median"]),
            **{name: s[name]["mean"] for name in COUNTERS},
            "accuracy": s["accuracy"]["value"],
            "failures": s["failures"],
            "rss_peak_mb": None if s["rss_peak_bytes"] is None else s["rss_peak_bytes"] / 1e6,
            "energy_joule": s["energy_joule"]["mean"],
        }
    for pair in report["pairs"]:
        difference = pair["accuracy_difference"]
        found[f"{pair['run']}_over_{pair['reference']}"] = {
            "time": pair["time_ratio"]["value"],
            "latency": pair["latency_ratio"]["value"],
            "ar_steps": pair["ar_steps_ratio"]["value"],
            "accuracy_points": None if difference is None else _times(100, difference["difference"]),
        }
    return found


def _note(case: Case, suite: Suite, rows: Sequence[Row]) -> str | None:
    looks = [row.look_seconds for row in rows if row.look_seconds is not None]
    look = f"asked of a scene; the look before it took {1000 * statistics.median(looks):.1f} ms" if looks else None
    early = ended_early(case, suite, [row.spoken_tokens for row in rows])
    said = [text for text in (case.note, look, early) if text]
    return "; ".join(said) or None


def _run(case: Case, session: Session, suite: Suite) -> Report:
    rows, source = session.rows[case.id], case.engine.phases
    differences = session.differences.get(case.id, [])
    return {
        "id": case.id,
        "model": case.model,
        "mode": case.options.mode,
        "settings": case.settings.model_dump(mode="json"),
        "threads": case.threads,
        "note": _note(case, suite, rows),
        "summary": summarize_run(rows, source, differences),
        "ceilings": None,
        "differences": differences,
        "rows": [row.to_dict() for row in rows],
    }


def _pairs(cases: Sequence[Case], session: Session) -> list[Report]:
    """Each model's runs against its first latent one, and the later models' first latent run against the first's."""
    firsts: dict[int, Case] = {}
    for case in cases:
        if case.options.mode == "latent":
            firsts.setdefault(case.model, case)
    wanted = [(case, firsts[case.model]) for case in cases if case.model in firsts and case is not firsts[case.model]]
    across = list(firsts.values())
    wanted += [(case, across[0]) for case in across[1:]]
    return [
        {
            "run": case.id,
            "reference": reference.id,
            "mode": case.options.mode,
            "reference_mode": reference.options.mode,
            **compare_runs(session.rows[case.id], session.rows[reference.id]),
        }
        for case, reference in wanted
    ]


def _rates(
    models: Sequence[Model], cases: Sequence[Case], counted: Mapping[str, ModelCounts]
) -> list[MeasuredRates | None]:
    found: list[MeasuredRates | None] = []
    for index, model in enumerate(models):
        own = [case for case in cases if case.model == index]
        weights = int(sum(counted[own[0].id].weight_bytes.values())) if own else 0
        found.append(measure_rates(model.reasoner.engine, weights, model.choice.threads))
    return found


def _work(counts: ModelCounts, summary: Report) -> dict[str, Work]:
    return phase_work(counts, {name: summary[name]["mean"] for name in (*COUNTERS, "pictures")})


def _ceilings(summary: Report, work: Mapping[str, Work], rates: MeasuredRates | None) -> Report | None:
    if rates is None:
        return None
    phases = summary["phases_sec"]
    machine = fastest_float(rates.types)
    return ceilings(work, phases, rates.rates, "vision" not in phases, rates.vision_rates, machine)


def _model(model: Model, rates: MeasuredRates | None) -> Report:
    engine = model.reasoner.engine
    counts = engine.counts()
    return {
        "name": model.name,
        "path": model.choice.path,
        "engine": engine.name,
        "device": engine.place,
        "precision": engine.dtype,
        "products": engine.products,
        "cuda_graphs": engine.cuda_graphs,
        "attention": engine.attention,
        "precision_reason": model.dtype_reason,
        "random_weights": model.random_weights,
        "threads": model.choice.threads,
        "weight_bytes": counts.weight_bytes,
        "counting_notes": list(counts.notes),
        "bundle_bytes": None if engine.bundle is None else engine.bundle.num_bytes,
        "load_sec": model.load_seconds,
        "load_rss_bytes": model.load_bytes,
        "settings": engine.settings.model_dump(mode="json"),
        "rates": None if rates is None else rates.to_dict(),
    }


def _machine(started: Mapping[str, Any]) -> Report:
    return {
        "memory_bytes": memory_bytes(),
        "gpus": [gpu.summary() for gpu in find_gpus().found],
        "onnxruntime_providers": onnxruntime_providers(),
        "openvino": installed_version("openvino"),
        "at_start": dict(started),
        "at_end": machine_state(),
    }


def _timer(runs: Sequence[Report]) -> Report:
    """Two readings of the clock bound a phase."""
    cost = clock_cost()
    phases = [
        (summary["median"], f"{run['id']} {name}")
        for run in runs
        for name, summary in run["summary"]["phases_sec"].items()
        if name != "other" and summary["median"] and summary["median"] > 0
    ]
    smallest = min(phases, default=(None, None))
    share = None if smallest[0] is None else 2 * cost / smallest[0]
    return {"reading_sec": cost, "smallest_phase_sec": smallest[0], "smallest_phase": smallest[1], "share": share}


def _examples(cases: Sequence[Case], samples: Sequence[Sample]) -> list[Report]:
    """The first questions once more, with every run's answer and the latent run's picture of where it looked."""
    found: list[Report] = []
    for sample in samples:
        entry: Report = {"question": sample.question, "expected": sample.answer, "answers": {}, "trace_png": None}
        for case in cases:
            try:
                asked = case.reasoner.ask(
                    sample.images, sample.question, case.options.mode, max_new_tokens=case.options.max_new_tokens,
                    max_latent_steps=case.options.max_latent_steps, halting=case.options.halting,
                )  # fmt: skip
            except LrkitError:
                continue  # the rows say so
            entry["answers"][case.id] = {"text": asked.text, "ar_steps": asked.ar_steps}
            if asked.mode == "latent" and entry["trace_png"] is None and asked.images:
                entry["trace_png"] = _trace(asked)
        found.append(entry)
    return found


def _trace(answer: Any) -> str:
    """The drawn trace as a small PNG in base 64."""
    from PIL import Image

    from lrkit.runtime.answer.trace import draw_trace

    page = draw_trace(answer)
    if page.width > _TRACE_WIDTH:
        page = page.resize((_TRACE_WIDTH, round(page.height * _TRACE_WIDTH / page.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    page.quantize(_TRACE_COLORS, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _times_word(ratio: float, above: str, below: str) -> str:
    if f"{max(ratio, 1 / ratio):.1f}" == "1.0":
        return "as many" if above == "fewer" else "as fast"
    return f"{ratio:.1f}x {above}" if ratio >= 1 else f"{1 / ratio:.1f}x {below}"


def _milli(seconds: float | None) -> float | None:
    return _times(1000, seconds)


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value
