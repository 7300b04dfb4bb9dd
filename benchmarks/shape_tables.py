"""The tables of models at a published size with random weights: in torch and as programs. tables.py shows them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Report = dict[str, Any]
Rows = Iterable[Sequence[str]]

TORCH_HEAD = (
    "shape", "device", "type", "CUDA graphs", "latent, ms", "in words, ms", "fewer steps", "times faster",
    "replayed tokens",
)  # fmt: skip
PROGRAM_HEAD = (
    "program", "engine", "replayed tokens", "picture and prompt, ms", "latent, ms", "in words, ms", "words / latent",
    "follow-up: latent, ms", "in words, ms", "words / latent", "second / first", "a latent step, ms", "a token, ms",
)  # fmt: skip


def torch_rows(report: Report) -> Rows:
    """What words cost against latents in torch, and how many steps fewer latents are."""
    model = report["models"][0]
    runs = {run["id"]: run["summary"] for run in report["runs"]}
    cpu, gpus = report["provenance"]["cpu"], report["machine"]["gpus"]
    device = gpus[0]["name"] if model["device"] != "cpu" else cpu or "unknown"
    for suffix in ("", "-eager"):
        if f"latent{suffix}" not in runs:
            continue
        latent, words = runs[f"latent{suffix}"], runs[f"cot{suffix}"]
        graphs = "yes" if model.get("cuda_graphs") and not suffix else "no"
        steps = f"{words['ar_steps']['mean'] / latent['ar_steps']['mean']:.1f}"
        yield (
            model["name"], device, model["precision"], graphs, _ms(_median(latent)), _ms(_median(words)), steps,
            f"{_median(words) / _median(latent):.1f}", _mean(latent, "replayed_tokens"),
        )  # fmt: skip


def program_rows(report: Report) -> Rows:
    """What a question costs in latents and in words, a first one and one about a picture that was looked at before."""
    for number, model in enumerate(report["models"]):
        found = {run["settings"]["name"]: run["summary"] for run in report["runs"] if run["model"] == number}
        latent = found["latent"]
        products = f", {model['products']}" if model.get("products") else ""
        yield (
            model["name"], f"{model['engine']}{products}", _mean(latent, "replayed_tokens"),
            _phase(found["direct"], "first_token_sec"),
            *_pair(found, "latent", "cot"), *_pair(found, "follow-up", "follow-up-cot"),
            f"{_median(found['follow-up']) / _median(latent):.2f}" if "follow-up" in found else "-",
            _phase(latent, "latent_step_sec"), _phase(found["cot"], "token_sec"),
        )  # fmt: skip


def _pair(found: Mapping[str, Report], latent: str, words: str) -> tuple[str, str, str]:
    if not {latent, words} <= set(found):
        return ("-", "-", "-")
    times = _median(found[latent]), _median(found[words])
    return _ms(times[0]), _ms(times[1]), f"{times[1] / times[0]:.1f}"


def _phase(summary: Report, what: str) -> str:
    """The profile may not have told phases apart."""
    found = summary.get(what)
    return _ms(found["median"]) if found and found["median"] is not None else "-"


def _median(summary: Report) -> float:
    return summary["latency_sec"]["median"]


def _mean(summary: Report, what: str) -> str:
    return f"{summary[what]['mean']:.0f}"


def _ms(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
