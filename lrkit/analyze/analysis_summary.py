"""Rows to a report: means and ratios with 95% intervals over the samples, and what they say in sentences. Torch-free.

    rows -> `summarize_rows` -> report.json, analysis_plots.py, analysis_page.py

A ratio is a geometric mean over the samples, each against itself (hard against easy ones: group against group). Over
layers, a sample's figure is the geometric mean of those of the layers that a state enters. The states in front of the
final norm are left out: only those which are read have a gradient there.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lrkit.analyze.rows import Row, finite
from lrkit.profile.judge.statistics import geometric_ratio, ratio_of_means

Values = Mapping[str, Any]
GRADIENTS = {
    "gradient_mean": "mean over tokens",
    "gradient_median": "median over tokens",
    "gradient_total": "all tokens together",
    "gradient_scaled": "mean, scaled by states",
}
TOKENS = ("visual", "text", "replayed", "latent", "spoken")
MATRICES = ("q", "k", "v", "o")
SCHEMA = 1
_RESAMPLES = 4000
_DRAWN = ("gradient_mean", "contribution")
Table = dict[tuple[int | None, str, str], dict[int, float]]
"""Layer, kind, measure -> sample -> value."""


def summarize_rows(rows: Sequence[Row], **head: Any) -> dict[str, Any]:
    """The report. `head` (model, data, seed, provenance, ...) is added as given."""
    points = [_point(key, own) for key, own in _by_point(rows).items()]
    stages = _by_point(rows)
    last = next(reversed(stages))[1]
    tables = [_table(own) for (_, stage), own in stages.items() if stage == last]
    volatility = {kind: _volatility([_over_layers(table, kind) for table in tables]) for kind in TOKENS}
    report = {
        "schema": SCHEMA,
        "kind": "analysis",
        **head,
        "layers": 1 + max(row.layer for row in rows if row.measure == "contribution" and row.layer is not None),
        "volatility": {  # within the last stage
            **{kind: _mean(found) for kind, found in volatility.items()},
            "visual_over_text": _ratio(volatility["visual"], volatility["text"]),
        },
        "points": points,
    }
    return {"headlines": headlines(report), **report}


def headlines(report: Values) -> list[str]:
    """What the last point says, a sentence each."""
    last = report["points"][-1]
    found = [_visual_sentence(last)]
    ratio = report["volatility"]["visual_over_text"]
    if ratio["value"] is not None:
        found.append(
            f"From point to point of the stage {last['stage']} the gradients of visual tokens vary {_times(ratio)} as "
            f"much as those of text tokens (standard deviation over mean): {_verdict(ratio, 'more', 'less')}."
        )
    hard = last["nuclear"].get("hard_over_easy")
    if hard and hard["value"] is not None:
        found.append(
            f"The gradients of q, k, v and o have a nuclear norm for hard samples that is {_times(hard)} that of easy "
            f"ones: {_verdict(hard, 'larger', 'smaller')}."
        )
    for kind, told in (("latent", "a latent is read off"), ("spoken", "a word is spoken")):
        depth = last["depth"].get(kind)
        if depth:
            found.append(
                f"Where {told}, what the head says is settled after {depth['settled']['value']:.1f} of "
                f"{report['layers']} layers on average."
            )
    return found


def _visual_sentence(point: Values) -> str:
    ratios = point["visual_over_text"]
    if ratios["gradient_mean"]["value"] is None:
        return "There are no visual tokens to compare with text, or they get no gradient."
    first = ratios["gradient_mean"]
    others = [f"{_times(ratios[name])} ({told})" for name, told in GRADIENTS.items() if name != "gradient_mean"]
    verdict = _verdict(
        first, "larger, as versions 1 to 3 of arXiv 2604.10500 say", "smaller, as version 4 of arXiv 2604.10500 says"
    )
    return (
        f"A visual token's gradient is {_times(first)} a text token's, over all layers, after {point['updates']} "
        f"updates: {verdict}. By other measures: {', '.join(others)}. Behind the first layer alone it is "
        f"{_times(first['behind_first'])} a text token's: {_verdict(first['behind_first'], 'larger', 'smaller')}."
    )


def _times(ratio: Values) -> str:
    if ratio["value"] is None:
        return "an unknown multiple of"
    bounds = "" if ratio["low"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
    return f"{ratio['value']:.2f}{bounds} times"


def _verdict(ratio: Values, above: str, below: str) -> str:
    if ratio["low"] is None or ratio["high"] is None:
        return "too few samples to say"
    if ratio["low"] > 1:
        return above
    return below if ratio["high"] < 1 else "no difference that the samples show"


def _by_point(rows: Iterable[Row]) -> dict[tuple[int, str], list[Row]]:
    found: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.updates, row.stage), []).append(row)
    return found


def _table(rows: Iterable[Row]) -> Table:
    table: Table = {}
    for row in rows:
        if row.sample is not None and row.token is None and row.value is not None:
            table.setdefault((row.layer, row.kind, row.measure), {})[row.sample] = row.value
    return table


def _point(key: tuple[int, str], rows: Sequence[Row]) -> dict[str, Any]:
    table = _table(rows)
    layers = 1 + max(layer for layer, _, _ in table if layer is not None)
    groups = {row.sample: row.group for row in rows if row.sample is not None}
    tokens = {
        kind: {measure: _by_layer(table, kind, measure, layers) for measure in (*GRADIENTS, "contribution", "cosine")}
        for kind in TOKENS
        if (0, kind, "gradient_mean") in table
    }
    depth = {
        kind: {
            "settled": _mean(table[None, kind, "settled_depth"]),
            "agreement": [_mean(table.get((layer, kind, "agreement"), {}))["value"] for layer in range(layers)],
        }
        for kind in ("latent", "spoken")
        if (None, kind, "settled_depth") in table
    }
    return {
        "updates": key[0],
        "stage": key[1],
        "samples": len(groups),
        "loss": _mean(table.get((None, "model", "loss"), {})),
        "tokens": tokens,
        "visual_over_text": {name: _against(table, "visual", "text", name) for name in GRADIENTS},
        "latent_over_text": {name: _against(table, "latent", "text", name) for name in GRADIENTS},
        "nuclear": _nuclear(table, groups),
        "depth": depth,
        "projection_share": [
            row.value for row in rows if row.measure in ("pc1_share", "pc2_share") and row.kind == "model"
        ],
    }


def _by_layer(table: Table, kind: str, measure: str, layers: int) -> list[Any]:
    """Means; those that are drawn have intervals."""
    cells = [table.get((layer, kind, measure), {}) for layer in range(layers)]
    if measure in _DRAWN:
        return [_mean(cell) for cell in cells]
    return [finite(float(np.mean(list(cell.values())))) if cell else None for cell in cells]


def _against(table: Table, over: str, under: str, measure: str) -> dict[str, Any]:
    """The ratio over all layers, in each, and behind the first: in front of it states still have the embeddings'
    lengths, by which the layer's norm divides their gradients."""
    count = 1 + max(layer for layer, _, _ in table if layer is not None)
    by_layer = [
        _ratio(table.get((layer, over, measure), {}), table.get((layer, under, measure), {}))["value"]
        for layer in range(count - 1)
    ]
    behind = {"behind_first": _ratio(*(_over_layers(table, kind, measure, first=1) for kind in (over, under)))}
    every = _ratio(*(_over_layers(table, kind, measure) for kind in (over, under)))
    return {**every, "by_layer": by_layer, **behind}


def _over_layers(table: Table, kind: str, measure: str = "gradient_mean", first: int = 0) -> dict[int, float]:
    """Sample -> geometric mean over the layers that a state enters, from the first of them on."""
    last = max(layer for layer, _, _ in table if layer is not None)
    logs: dict[int, list[float]] = {}
    for (layer, of, name), values in table.items():
        if of == kind and name == measure and layer is not None and first <= layer < last:
            for sample, value in values.items():
                if value > 0:
                    logs.setdefault(sample, []).append(float(np.log(value)))
    return {sample: float(np.exp(np.mean(own))) for sample, own in logs.items()}


def _volatility(points: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Sample -> standard deviation over mean, from point to point; empty below three points."""
    if len(points) < 3:
        return {}
    shared = set(points[0]).intersection(*points[1:])
    found: dict[int, float] = {}
    for sample in sorted(shared):
        values = np.array([point[sample] for point in points])
        found[sample] = float(values.std(ddof=1) / values.mean())
    return found


def _nuclear(table: Table, groups: Mapping[int, str]) -> dict[str, Any]:
    """By matrix and part: the norm by layer for easy and hard samples; hard over easy for each matrix and for all."""
    keys = sorted({(kind, name) for _, kind, name in table if name.startswith("nuclear_")})
    found: dict[str, Any] = {}
    every: dict[int, list[float]] = {}
    for kind in MATRICES:
        own: dict[int, list[float]] = {}
        for name in (name for of, name in keys if of == kind):
            layers = sorted(layer for layer, of, m in table if of == kind and m == name and layer is not None)
            cells = {layer: table[layer, kind, name] for layer in layers}
            found.setdefault(kind, {})[name.removeprefix("nuclear_")] = {
                group: [_mean({s: v for s, v in cells[layer].items() if groups[s] == group}) for layer in layers]
                for group in ("easy", "hard")
            }
            for values in cells.values():
                for sample, value in values.items():
                    own.setdefault(sample, []).append(value)
                    every.setdefault(sample, []).append(value)
        if own:
            found[kind]["hard_over_easy"] = _group_ratio(own, groups)
    if every:
        found["hard_over_easy"] = _group_ratio(every, groups)
    return found


def _group_ratio(values: Mapping[int, Sequence[float]], groups: Mapping[int, str]) -> dict[str, Any]:
    """Geometric mean of the hard samples' sums over that of the easy ones', each group drawn again by itself."""
    logs = {
        group: np.log([sum(own) for sample, own in values.items() if groups[sample] == group and sum(own) > 0])
        for group in ("easy", "hard")
    }
    if not all(len(own) for own in logs.values()):
        return {"value": None, "low": None, "high": None}
    value = finite(float(np.exp(logs["hard"].mean() - logs["easy"].mean())))
    if min(map(len, logs.values())) < 2:
        return {"value": value, "low": None, "high": None}
    rng = np.random.default_rng(0)
    draws = {group: own[rng.integers(0, len(own), (_RESAMPLES, len(own)))].mean(-1) for group, own in logs.items()}
    low, high = np.exp(np.percentile(draws["hard"] - draws["easy"], (2.5, 97.5)))
    return {"value": value, "low": finite(float(low)), "high": finite(float(high))}


def _ratio(over: Mapping[int, float], under: Mapping[int, float]) -> dict[str, Any]:
    shared = [sample for sample in over if sample in under]
    return _short(geometric_ratio([over[sample] for sample in shared], [under[sample] for sample in shared]))


def _mean(values: Mapping[int, float]) -> dict[str, Any]:
    found = ratio_of_means(list(values.values()), [1.0] * len(values))
    return _short(found)


def _short(found: Values) -> dict[str, Any]:
    """Six digits are more than any interval here supports."""
    return {name: None if found[name] is None else finite(found[name]) for name in ("value", "low", "high")}
