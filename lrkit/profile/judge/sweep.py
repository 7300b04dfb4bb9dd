"""Tries settings of the latent mode against each other and names the one to use on this device.

Place in the pipeline: `lrkit sweep MODEL replay_tokens=0,4,8 threads=1,2` -> runs added to the suite -> `judge_sweep`.

It recommends the fastest setting whose accuracy is not measurably below that of the most accurate one on the same
questions (McNemar, p at least 0.05). Without answers it recommends the fastest.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrkit.config import load_config
from lrkit.contract.scoring import compare_paired
from lrkit.errors import ConfigError, UserError, did_you_mean, shown
from lrkit.profile.measure.suite import RunSettings, Suite
from lrkit.strict_yaml import parse_yaml

KEYS = ("replay_tokens", "max_latent_steps", "halting", "routing_depth", "prune_after", "prune_keep", "threads")
_MOST_SETTINGS = 48
_ALPHA = 0.05

Axes = Mapping[str, Sequence[int | float | str]]


def parse_axes(given: Sequence[str]) -> Axes:
    """key=a,b,c -> values.

    Raises:
        UserError: another form, an unknown key, or one named twice.
    """
    axes: dict[str, list[int | float | str]] = {}
    for text in given:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise UserError(f"{shown(text)} is no setting to try; write it as in replay_tokens=0,4,8")
        if key not in KEYS:
            raise UserError(f"unknown setting {shown(key)}; known: {', '.join(KEYS)}{did_you_mean(key, KEYS)}")
        if key in axes:
            raise UserError(f"{key} is named twice; give all its values at once, as in {key}=1,2")
        axes[key] = [_axis_value(key, value) for value in values.split(",")]
    return axes


def _axis_value(key: str, text: str) -> int | float | str:
    value = parse_yaml(text, f"{key}: the value ")
    if isinstance(value, list | dict) or value is None:
        raise UserError(f"{key}: {shown(text, 40)} is no setting; give whole numbers or words, as in {key}=1,2")
    return value


def with_sweep(suite: Suite, axes: Axes) -> Suite:
    """The suite with a run for every combination of the settings.

    Raises:
        UserError: more combinations than can be measured side by side, or a value that is not allowed.
    """
    combinations = list(itertools.product(*axes.values()))
    if len(combinations) > _MOST_SETTINGS:
        raise UserError(f"the sweep has {len(combinations)} settings, above {_MOST_SETTINGS}; give fewer values")
    added: list[RunSettings] = []
    for values in combinations:
        settings = dict(zip(axes, values, strict=True))
        name = _name(settings)
        try:
            added.append(load_config(RunSettings, {"name": name, "mode": "latent", **settings}))
        except ConfigError as error:
            raise UserError(f"{name}: {error}") from error
    return suite.model_copy(update={"runs": (*suite.runs, *added)})


def judge_sweep(report: Mapping[str, Any], axes: Axes) -> dict[str, Any]:
    """The settings measured, which of them no other beats in both accuracy and latency, and the one to use."""
    runs = [run for run in report["runs"] if _settings(run, axes) is not None]
    points = [
        {
            "run": run["id"],
            "settings": _settings(run, axes),
            "accuracy": run["summary"]["accuracy"]["value"],
            "latency_sec": run["summary"]["latency_sec"]["median"],
            "ar_steps": run["summary"]["ar_steps"]["mean"],
        }
        for run in runs
    ]
    for point in points:
        point["pareto"] = not any(_beats(other, point) for other in points)
    best, reason = _recommend(runs)
    explicit = next((run for run in report["runs"] if run["mode"] == "cot"), None)
    return {
        "axes": {key: list(values) for key, values in axes.items()},
        "points": points,
        "use": best,
        "why": reason,
        "replay_against_cot": replay_against_cot(points, best, explicit),
    }


def replay_against_cot(
    points: Sequence[Mapping[str, Any]], best: str | None, explicit: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """What replay costs against the chain of thought it replaces, with all else as in the recommended setting: at each
    number of replayed tokens the latency over the chain's, the first number that costs more (None: none tried does),
    and where a straight line through them meets the chain (None: it does not rise). None where the sweep has no two
    such numbers, or no chain was measured."""
    used = next((point["settings"] for point in points if point["run"] == best), None)
    if used is None or "replay_tokens" not in used:
        return None
    tried = {
        point["settings"]["replay_tokens"]: point["latency_sec"]
        for point in points
        if point["latency_sec"] is not None
        and {**point["settings"], "replay_tokens": None} == {**used, "replay_tokens": None}
    }
    chain = None if explicit is None else explicit["summary"]["latency_sec"]["median"]
    if chain is None or len(tried) < 2:
        return None
    numbers = sorted(tried)
    ratios = {str(number): tried[number] / chain for number in numbers}
    slope, base = (float(value) for value in np.polyfit(numbers, [tried[number] for number in numbers], 1))
    return {
        "cot_sec": chain,
        "latency_over_cot": ratios,
        "dearer_from": next((number for number in numbers if tried[number] > chain), None),
        "break_even_tokens": (chain - base) / slope if slope > 0 else None,
        "sec_per_replayed_token": slope,
    }


def replay_sentence(found: Mapping[str, Any]) -> str:
    """`replay_against_cot` in words."""
    most, ratio = list(found["latency_over_cot"].items())[-1]
    if found["dearer_from"] is not None:
        said = f"from {found['dearer_from']} replayed tokens a step on, latents cost more than the chain of thought"
    else:
        said = f"no number tried costs more than the chain of thought; {most} a step take {ratio:.2f} of its time"
    meets = found["break_even_tokens"]
    line = "" if meets is None or meets < 0 else f"; a straight line through them meets it at about {meets:.0f}"
    return f"Replay against the chain of thought: {said}{line}"


def _settings(run: Mapping[str, Any], axes: Axes) -> dict[str, Any] | None:
    """Of a run that the sweep added; None for a run of the suite, which may set the same."""
    values = {key: run["settings"][key] for key in axes}
    return values if run["settings"]["name"] == _name(values) else None


def _name(settings: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in settings.items())


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if None in (one["latency_sec"], other["latency_sec"]):
        return one["latency_sec"] is not None
    right = [point["accuracy"] or 0.0 for point in (one, other)]
    no_worse = right[0] >= right[1] and one["latency_sec"] <= other["latency_sec"]
    return no_worse and (right[0] > right[1] or one["latency_sec"] < other["latency_sec"])


def _recommend(runs: Sequence[Mapping[str, Any]]) -> tuple[str | None, str]:
    usable = [run for run in runs if run["summary"]["latency_sec"]["median"] is not None]
    if not usable:
        return None, "no setting could be measured"
    top = max(usable, key=lambda run: run["summary"]["accuracy"]["value"] or 0.0)
    kept = [run for run in usable if not _measurably_below(run, top)]
    fastest = min(kept, key=lambda run: run["summary"]["latency_sec"]["median"])
    if top["summary"]["accuracy"]["value"] is None:
        return fastest["id"], "the fastest; the suite has no answers to compare"
    questions = top["summary"]["accuracy"]["total"]
    return fastest["id"], (
        f"the fastest of {len(kept)} settings whose accuracy is not measurably below the best, {top['id']} "
        f"({questions} questions, McNemar p >= {_ALPHA})"
    )


def _measurably_below(run: Mapping[str, Any], top: Mapping[str, Any]) -> bool:
    tables = [{row["sample"]: row["correct"] for row in one["rows"] if row["repeat"] == 0} for one in (top, run)]
    shared = [s for s in tables[0] if s in tables[1] and tables[0][s] is not None and tables[1][s] is not None]
    if not shared:
        return False
    compared = compare_paired([tables[0][s] for s in shared], [tables[1][s] for s in shared])
    return (compared.difference or 0.0) > 0 and compared.p_value is not None and compared.p_value < _ALPHA
