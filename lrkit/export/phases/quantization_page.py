"""The Markdown of a comparison of methods (benchmarks/quantization.py): tables of answers and of errors by phase."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Values = Mapping[str, Any]


def render(report: Values) -> str:
    """The whole page."""
    rows: Sequence[Values] = report["rows"]
    given = report["calibration"]
    parts = [
        "# Methods of rounding",
        f"On torch, answer by answer against floats. Methods that calibrate saw {given['samples']} samples of "
        f"{given['set']}, of the {given['half']}ing half. Lost: points of accuracy, paired, with a 95% interval.",
        "## Answers",
        table(
            ("checkpoint", "set", "samples", "bits", "method", "right in floats", "lost", "interval", "halting",
             "replayed", "spoken", "perplexity in floats", "rounded"),
            map(_answers, rows),
        ),
        "## Error by phase",
        "||rounded - float|| / ||float|| of hidden states behind the final norm, mean over samples.",
        table(
            ("checkpoint", "set", "bits", "method", "prompt, last token", "prompt, all tokens", "first latent",
             "last latent", "speech"),
            map(_errors, rows),
        ),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _answers(row: Values) -> list[str]:
    agreement, accuracy, said = row["agreement"], row["accuracy"], row["perplexity"]
    lost = accuracy["lost"] if accuracy else None
    return [
        row["checkpoint"], row["set"], str(row["samples"]), str(row["bits"]), row["way"],
        f"{accuracy['float']:.2%}" if accuracy else "-", f"{100 * lost['difference']:+.2f}" if lost else "-",
        f"{100 * lost['low']:+.2f} to {100 * lost['high']:+.2f}" if lost else "-",
        *(f"{agreement[kind]:.2%}" for kind in ("halting", "replayed", "spoken")),
        f"{said['float']:.4f}", f"{said['rounded']:.4f}",
    ]  # fmt: skip


def _errors(row: Values) -> list[str]:
    named = ("prompt.last", "prompt.tokens", "latent.1", "latent.last", "speech")
    found = (row["phases"].get(phase) for phase in named)
    return [row["checkpoint"], row["set"], str(row["bits"]), row["way"], *(_mean(one) for one in found)]


def _mean(found: Values | None) -> str:
    return "-" if found is None or found["mean"] is None else f"{found['mean']:.4f}"
