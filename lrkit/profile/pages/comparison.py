"""Compares two reports of the same runs: slower, faster or the same, and how sure that is. Torch-free.

Latencies are compared question by question. Two sessions on one machine also differ by what else the machine did, and
no question shows that. So a change counts only if its interval excludes 1, and if it is larger than the drift within
either report and than `_LEAST`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lrkit.contract.scoring import compare_paired
from lrkit.errors import UserError
from lrkit.profile.judge.statistics import geometric_ratio, ratio_of_means
from lrkit.profile.pages.markdown import interval, plain, table

Values = Mapping[str, Any]
_LEAST = 0.03
"""Changes below this are called the same whatever their interval."""


def compare_reports(before: Values, after: Values) -> dict[str, Any]:
    """For JSON: per run that both reports have, the ratio after / before with its interval and a verdict.

    Raises:
        UserError: no run of the same name.
    """
    old, new = ({run["id"]: run for run in report["runs"]} for report in (before, after))
    shared = [name for name in old if name in new]
    if not shared:
        raise UserError(
            f"the reports have no run in common ({', '.join(old)}; {', '.join(new)}); profile the same suite twice"
        )
    return {
        "schema": 1,
        "kind": "profile-comparison",
        "runs": {name: _compare(old[name], new[name]) for name in shared},
        "only_before": [name for name in old if name not in new],
        "only_after": [name for name in new if name not in old],
        "differs": _differences(before, after),
    }


def render_comparison(compared: Values) -> str:
    """A Markdown table and what else differs between the reports."""
    rows = [
        [name, row["verdict"], interval(row["latency_ratio"]), f"{row['noise']:.1%}", interval(row["ar_steps_ratio"]),
         interval(row["accuracy_difference"], 100, 1)]
        for name, row in compared["runs"].items()
    ]  # fmt: skip
    head = ("run", "latency", "after / before", "noise", "AR steps, after / before", "accuracy, after - before, points")
    lines = [table(head, rows)]
    lines += [
        f"differs: {name}: {plain(str(old))} before, {plain(str(new))} after"
        for name, (old, new) in compared["differs"].items()
    ]
    for key, word in (("only_before", "before"), ("only_after", "after")):
        if compared[key]:
            lines.append(f"only {word}: {', '.join(map(plain, compared[key]))}")
    return "\n".join(lines)


def _compare(old: Values, new: Values) -> dict[str, Any]:
    times = [_by_sample(run["rows"], lambda row: row["seconds"]["total"]) for run in (old, new)]
    steps = [_by_sample(run["rows"], lambda row: row["ar_steps"]) for run in (old, new)]
    shared = [sample for sample in times[0] if sample in times[1]]
    latency = geometric_ratio([times[1][s] for s in shared], [times[0][s] for s in shared])
    noise = max(_LEAST, *(abs(run["summary"]["drift"] or 0.0) for run in (old, new)))
    right = [
        {row["sample"]: row["correct"] for row in run["rows"] if row["repeat"] == 0 and row["correct"] is not None}
        for run in (old, new)
    ]
    both = [sample for sample in right[0] if sample in right[1]]
    answers = [[table[sample] for sample in both] for table in right]
    return {
        "latency_ratio": latency,
        "noise": noise,
        "verdict": verdict(latency, noise),
        "ar_steps_ratio": ratio_of_means([steps[1][s] for s in shared], [steps[0][s] for s in shared]),
        "accuracy_difference": compare_paired(answers[1], answers[0]).to_dict() if both else None,
    }


def verdict(ratio: Values, noise: float) -> str:
    """slower, faster, same (within noise), or unknown without an interval."""
    if ratio["low"] is None or ratio["high"] is None:
        return "unknown"
    if ratio["low"] > 1 + noise:
        return "slower"
    return "faster" if ratio["high"] < 1 / (1 + noise) else "same"


def _by_sample(rows: Sequence[Values], value: Any) -> dict[str, float]:
    """Sample -> the median of its repeats."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["error"] is None:
            found.setdefault(row["sample"], []).append(value(row))
    return {sample: sorted(values)[len(values) // 2] for sample, values in found.items()}


def _differences(before: Values, after: Values) -> dict[str, list[Any]]:
    """What the two were made with, where it differs: a change of these can explain a change of latency."""
    made = [report["provenance"] for report in (before, after)]
    pairs = {
        key: [one[key] for one in made] for key in ("lrkit", "git_commit", "python", "cpu", "platform", "num_cpus")
    }
    pairs |= {name: [one["packages"].get(name) for one in made] for name in ("torch", "onnxruntime", "transformers")}
    pairs["threads"] = [[run["threads"] for run in report["runs"]] for report in (before, after)]
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
