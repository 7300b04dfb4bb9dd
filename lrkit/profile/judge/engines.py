"""What a profile says of the engines that one bundle was run on, or could be.

Place in the pipeline: profile/report.py has built models, runs and pairs -> `engine_sentences` -> the headlines of the
report.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lrkit.contract.bundle.manifest import ProgramEntry
from lrkit.contract.schemes import scheme_named
from lrkit.provenance import installed_version

_OTHER = {"onnxruntime": "openvino", "openvino": "onnxruntime"}
SAME = 0.02
"""Times that differ by less are called equal."""


def engine_sentences(
    models: Sequence[Mapping[str, Any]], entries: Sequence[ProgramEntry | None], runs: Sequence[Mapping[str, Any]]
) -> list[str]:
    """One sentence for each bundle that several engines ran, and for each that another engine here could run. `entries`
    are the models' programs."""
    by_path: dict[str, list[int]] = {}
    for index, model in enumerate(models):
        by_path.setdefault(str(model["path"]), []).append(index)
    found = [_compared(models, runs, indexes, entries[indexes[0]]) for indexes in by_path.values()]
    found += [_alone(models[places[0]], entries[places[0]]) for places in by_path.values() if len(places) == 1]
    return [sentence for sentence in found if sentence]


def _compared(
    models: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], indexes: list[int],
    entry: ProgramEntry | None,
) -> str:  # fmt: skip
    """The engine that was fastest, by the median of the first run that all of them have."""
    if len({models[index]["engine"] for index in indexes}) < 2:
        return ""
    medians = [_median(runs, index) for index in indexes]
    if None in medians:
        return ""
    timed = sorted((seconds, index) for seconds, index in zip(medians, indexes, strict=True) if seconds is not None)
    (best, first), (worse, second) = timed[0], timed[1]
    path, one, other = models[first]["path"], models[first]["engine"], models[second]["engine"]
    times = f"{best * 1e3:.1f} against {worse * 1e3:.1f} ms"
    if worse / best - 1 < SAME:
        return f"{path}: {one} and {other} take the same time here (median {times})"
    # Where weights are integers, ONNX Runtime has operators of its own for them, in a dialect of its own.
    slow = entry is not None and entry.dialect == "standard" and scheme_named(entry.precision).integers
    also = "; a bundle of the dialect ort shows onnxruntime at its best" if slow and other == "onnxruntime" else ""
    return f"{path}: use --engine {one} here, which is {worse / best:.2f}x as fast as {other} (median {times}){also}"


def _median(runs: Sequence[Mapping[str, Any]], model: int) -> float | None:
    own = [run for run in runs if run["model"] == model]
    value = own[0]["summary"]["latency_sec"]["median"] if own else None
    return value if isinstance(value, float) and value > 0 else None


def _alone(model: Mapping[str, Any], entry: ProgramEntry | None) -> str:
    other = _OTHER.get(str(model["engine"]))
    if entry is None or entry.dialect != "standard" or other is None or model["device"] != "cpu":
        return ""
    if installed_version(other) is None:
        return ""
    return f"{model['path']}: {other} can run it too; --engine {model['engine']},{other} says which is faster here"
