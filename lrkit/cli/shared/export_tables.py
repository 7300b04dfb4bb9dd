"""Tables that `lrkit export` prints: bytes by part, the comparison with torch, the errors by phase."""

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from lrkit.export.bundle import ExportReport


def sizes(report: "ExportReport") -> Table:
    """Bytes by part, program by program."""
    programs = report.manifest.programs
    parts = sorted({part for entry in programs.values() for part in entry.bytes_by_part})
    table = Table(title="weights, MB", title_justify="left")
    table.add_column("program")
    for part in [*parts, "file"]:
        table.add_column(part, justify="right")
    for role, entry in programs.items():
        named = {entry.file, *(step.file for step in entry.steps.values())} | ({entry.data} if entry.data else set())
        stored = sum(report.manifest.files[name].bytes for name in named)
        cells = [entry.bytes_by_part.get(part, 0) for part in parts]
        table.add_row(f"{role} {entry.precision}", *(f"{value / 1e6:.3f}" for value in [*cells, stored]))
    return table


def proofs(report: "ExportReport") -> Table:
    """What the comparison with torch found."""
    table = Table(title="against torch", title_justify="left")
    proven = report.manifest.validation
    chooses = any("chosen_otherwise" in found.measured for found in proven.values())
    columns = ["samples", "logits", "latent states", "same answer", "right", "right in torch"]
    table.add_column("program")
    for column in columns + ["visual tokens chosen otherwise"] * chooses:
        table.add_column(column, justify="right")
    for role, found in proven.items():
        if not found.num_samples:
            table.add_row(role, "0", *["not compared"] * 2, *["-"] * 3)
            continue
        measured = found.measured
        agreement = measured["agreement"]
        same = agreement.get("spoken tokens", 1.0) if isinstance(agreement, dict) else 1.0
        right = [measured[f"accuracy_{who}"] for who in ("program", "torch")]
        chosen = measured.get("chosen_otherwise")
        table.add_row(
            role, str(found.num_samples), f"{measured['prefill_logits']:.1e}", f"{measured['latent_states']:.1e}",
            f"{same:.1%}", *("-" if value is None else f"{value:.1%}" for value in right),
            *([f"{chosen['tokens']} of {chosen['of']}"] if isinstance(chosen, dict) else []),
        )  # fmt: skip
    return table


PHASES = {"prompt.logits": "prompt", "latent.1": "first latent", "latent.last": "last latent"}
"""Phases of the record that are printed, by how they are called."""


def by_phase(report: "ExportReport") -> Table:
    """How far the numbers of each phase are from torch's, of their length; of speech, how many words are the same."""
    table = Table(title="error by phase (of the length of torch's numbers)", title_justify="left")
    for column in ("program", *PHASES.values(), "words alike", "points lost"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for role, found in report.manifest.validation.items():
        phases, lost = found.measured.get("phases"), found.measured.get("lost")
        if not isinstance(phases, dict):
            continue
        speech: Any = phases["speech"]
        points = f"{lost['points']:+.2f}" if isinstance(lost, dict) else "-"
        table.add_row(role, *(_mean(phases.get(name)) for name in PHASES), f"{speech['words_alike']:.1%}", points)
    return table


def _mean(found: Any) -> str:
    return f"{found['mean']:.1e}" if isinstance(found, dict) and found["mean"] is not None else "-"
