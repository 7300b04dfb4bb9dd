"""From rows to figures: summaries per run, and paired comparisons of runs on the same samples. Torch-free.

Place in the pipeline: measure/rounds.py -> `summarize_run`, `compare_runs` -> profile/report.py.

Runs are compared sample by sample. The ratio of a sample's two latencies (each the median of its repeats) does not
depend on how long that sample is. The interval is a percentile bootstrap over samples.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lrkit.contract.scoring import accuracy, compare_paired
from lrkit.profile.judge.depth_map import depth_map
from lrkit.profile.measure.phases import PHASES
from lrkit.profile.measure.rounds import Row
from lrkit.runtime.engines.common.protocol import Phases
from lrkit.summary import Summary, summarize

COUNTERS = ("ar_steps", "latent_steps", "spoken_tokens", "replayed_tokens", "prefilled_tokens", "patches")
_RESAMPLES = 4000
Differences = Sequence[Mapping[str, Any]]
"""What differences.py found, an entry per sample."""


def summarize_run(rows: Sequence[Row], source: Phases, differences: Differences = ()) -> dict[str, Any]:
    """The figures of one run, for JSON; seconds unless the name says otherwise, unknown is null."""
    good = [row for row in rows if row.error is None]
    first = [row for row in rows if row.repeat == 0 and row.correct is not None]
    return {
        "answers": len(rows),
        "failures": len(rows) - len(good),
        "errors": dict(Counter(row.error for row in rows if row.error is not None)),
        "accuracy": accuracy([bool(row.correct) for row in first]).to_dict(),
        "latency_sec": _summary(row.seconds["total"] for row in good),
        "look_sec": _summary(row.look_seconds for row in good),
        "first_token_sec": _summary(_first_token(good, source, differences)),
        "phase_source": source,
        "phases_sec": _phases(good, source, differences),
        "latent_step_sec": _summary(_latent_steps(good, source, differences)),
        "token_sec": _summary(_tokens(good, source, differences)),
        **{name: _summary(getattr(row, name) for row in good) for name in (*COUNTERS, "pictures")},
        "ar_steps_histogram": _histogram(row.ar_steps for row in good),
        "latent_steps_histogram": _histogram(row.latent_steps for row in good),
        "halting": dict(Counter(row.halting for row in good)),
        "cut_answers": sum(row.finished is False for row in good),
        "depths_mean": _mean_depths(good),
        "depth_map": depth_map([row.token_depths for row in good], [row.visual for row in good]),
        "rss_peak_bytes": _largest(row.rss_peak_bytes for row in good),
        "rss_growth_bytes": _largest(row.rss_growth_bytes for row in good),
        "device_peak_bytes": _largest(row.device_peak_bytes for row in good),
        "energy_joule": _summary(row.energy_joule for row in good),
        "drift": drift(good),
    }


def compare_runs(run: Sequence[Row], reference: Sequence[Row]) -> dict[str, Any]:
    """`run` against `reference` on the samples that both answered: ratios run / reference, accuracy reference - run."""
    mine, theirs = _by_sample(run), _by_sample(reference)
    shared = [sample for sample in theirs if sample in mine]
    pairs = {
        "latency_ratio": ([_latency(mine[s]) for s in shared], [_latency(theirs[s]) for s in shared]),
        "ar_steps_ratio": ([_steps(mine[s]) for s in shared], [_steps(theirs[s]) for s in shared]),
    }
    scored = _scored(run), _scored(reference)
    both = [sample for sample in scored[1] if sample in scored[0]]
    right = [[table[sample] for sample in both] for table in scored]
    return {
        "samples": len(shared),
        "time_ratio": ratio_of_means(*pairs["latency_ratio"]),
        "latency_ratio": geometric_ratio(*pairs["latency_ratio"]),
        "ar_steps_ratio": ratio_of_means(*pairs["ar_steps_ratio"]),
        "accuracy_difference": compare_paired(right[1], right[0]).to_dict() if both else None,
    }


def geometric_ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float | int | None]:
    """Geometric mean of over / under pair by pair, with its 95% bootstrap interval; null without pairs."""
    usable = [(a, b) for a, b in zip(over, under, strict=True) if a > 0 and b > 0]
    if not usable:
        return _unknown(len(usable))
    logs = np.log([a / b for a, b in usable])

    def statistic(index: np.ndarray) -> np.ndarray:
        return np.exp(logs[index].mean(-1))

    return _interval(statistic, len(usable))


def ratio_of_means(over: Sequence[float], under: Sequence[float]) -> dict[str, float | int | None]:
    """mean(over) / mean(under) with its 95% bootstrap interval over pairs; null where `under` is all zero."""
    above, below = np.asarray(over, dtype=float), np.asarray(under, dtype=float)
    if not len(below) or below.mean() == 0:
        return _unknown(len(below))

    def statistic(index: np.ndarray) -> np.ndarray:
        bottom = below[index].mean(-1)
        # A draw of nothing but zeros has no ratio; it counts as the largest.
        return np.divide(above[index].mean(-1), bottom, out=np.full_like(bottom, np.inf), where=bottom > 0)

    return _interval(statistic, len(below))


def drift(rows: Sequence[Row]) -> float | None:
    """By how much the end of a run was slower than its beginning (0.1: 10%): what two runs of the same thing may differ
    by on this machine. Each sample's last repeat against its first; without repeats the second half against the first.
    """
    repeated = [found for found in _by_sample(rows).values() if len(found) > 1]
    if len(repeated) > 1:
        return statistics.median(found[-1].seconds["total"] / found[0].seconds["total"] for found in repeated) - 1
    totals = [row.seconds["total"] for row in rows if row.error is None]
    if len(totals) < 4:
        return None
    half = len(totals) // 2
    return statistics.median(totals[half:]) / statistics.median(totals[:half]) - 1


def _interval(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> dict[str, float | int | None]:
    value = float(statistic(np.arange(count)[None])[0])
    if count < 2:
        return {"value": value, "low": None, "high": None, "pairs": count}
    draws = statistic(np.random.default_rng(0).integers(0, count, (_RESAMPLES, count)))
    low, high = (float(bound) if np.isfinite(bound) else None for bound in np.percentile(draws, (2.5, 97.5)))
    return {"value": value, "low": low, "high": high, "pairs": count}


def _unknown(count: int) -> dict[str, float | int | None]:
    return {"value": None, "low": None, "high": None, "pairs": count}


def _phases(rows: Sequence[Row], source: Phases, differences: Differences) -> dict[str, dict[str, Any]]:
    """Summaries of the phases that are known. What differences gave was measured in runs of its own; `other` is then
    what the answers took beyond it."""
    found = {name: _summary(row.seconds.get(name) for row in rows) for name in PHASES}
    apart = {
        name: _summary(entry.get(name) for entry in differences) for name in ("vision", "prefill", "think", "speak")
    }
    if source == "differences" and differences:
        found |= apart
        known = sum(apart[name]["median"] or 0.0 for name in apart)
        found["other"] = _summary(row.seconds["total"] - row.seconds["preprocess"] - known for row in rows)
    elif source == "host" and apart["vision"]["count"]:
        found["vision"] = apart["vision"]
        vision = apart["vision"]["median"]
        found["prefill"] = _summary(row.seconds["prefill"] - vision for row in rows)
    return {name: found[name] for name in PHASES if found[name]["count"]}


def _first_token(rows: Sequence[Row], source: Phases, differences: Differences) -> Iterable[float | None]:
    """A program gives all tokens at once: what it takes when it may speak one only, after the same preprocessing."""
    if source != "differences":
        return [row.first_token_seconds for row in rows]
    before = [row.seconds["preprocess"] for row in rows]
    return [statistics.median(before) + entry["first_token"] for entry in differences] if before else []


def _latent_steps(rows: Sequence[Row], source: Phases, differences: Differences) -> Iterable[float]:
    if source != "differences":
        return [seconds for row in rows for seconds in row.latent_step_seconds]
    return [seconds for entry in differences for seconds in entry.get("latent_step_sec", ())]


def _tokens(rows: Sequence[Row], source: Phases, differences: Differences) -> Iterable[float | None]:
    if source != "differences":
        return [seconds for row in rows for seconds in row.token_seconds]
    return [entry.get("token_sec") for entry in differences]


def _summary(values: Iterable[float | None]) -> dict[str, Any]:
    found: Summary = summarize(value for value in values if value is not None)
    return found.to_dict()


def _histogram(values: Iterable[int | None]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(v for v in values if v is not None).items())}


def _mean_depths(rows: Sequence[Row]) -> dict[str, float]:
    layers = sorted({layer for row in rows for layer in row.depths}, key=int)
    return {layer: sum(row.depths.get(layer, 0) for row in rows) / len(rows) for layer in layers}


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _by_sample(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.error is None:
            found.setdefault(row.sample, []).append(row)
    return found


def _scored(rows: Sequence[Row]) -> dict[str, bool]:
    """Sample -> right, by the first time it was asked: greedy answers do not change."""
    return {row.sample: row.correct for row in rows if row.repeat == 0 and row.correct is not None}


def _latency(rows: Sequence[Row]) -> float:
    return statistics.median(row.seconds["total"] for row in rows)


def _steps(rows: Sequence[Row]) -> float:
    return statistics.mean(row.ar_steps or 0 for row in rows)
