"""The tables of docs/plans.md: plans beside what others published, plans on many devices. tables.py shows them.

Place in the pipeline: profiles/reports/published-plans.json -> rows. Torch-free.
"""

from collections.abc import Iterator, Sequence
from typing import Any

Report = dict[str, Any]

PUBLISHED_HEAD = (
    "model, tokens, batch", "devices", "layers run again", "memory, GB: plan", "published", "plan / published",
    "tokens a second and device: plan", "published", "plan / published", "they reach of the datasheet", "source",
)  # fmt: skip


def published_rows(report: Report) -> Iterator[Sequence[str]]:
    """A plan a row, its memory and its speed beside the published figure."""
    for row in report["rows"]:
        rounds = f" x {row['rounds']}" if row["rounds"] > 1 else ""
        shape = f"{row['size']}, {row['sequence']:,}, {row['batch']}{rounds}"
        source = f"[{row['source']}]({report['sources'][row['source']]}): {row['note']}"
        yield (
            shape, row["name"], row["checkpointing"], *_cells(row["memory_gb"]), *_cells(row["tokens_per_sec"]),
            _reached(row["utilisation"]), source,
        )  # fmt: skip


RUN_HEAD = (
    "7B trains", "H100", "between machines", "memory of a device, GB", "an update, s", "of it waiting",
    "`shard: true`: GB", "an update, s", "of it waiting", "FSDP (not offered): GB", "an update, s", "of it waiting",
)  # fmt: skip


def run_rows(report: Report) -> Iterator[Sequence[str]]:
    """The recipe m3cot on one machine and on two."""
    for row in report["runs"]:
        fits = {True: "", False: " (has 80)"}
        yield (
            row["way"], f"{row['machines']} x {row['devices']}", row["network"],
            _number(row["memory_gb"]) + fits[row["fits"]], _span(row["update_sec"]), _percents(row["waiting_share"]),
            _number(row["parts_memory_gb"]) + fits[row["fits_in_parts"]], *_timed(row["parts"]),
            _number(row["sharded_memory_gb"]) + fits[row["fits_sharded"]], *_timed(row["sharded"]),
        )  # fmt: skip


def _timed(way: Report) -> tuple[str, str]:
    return _span(way["update_sec"]), _percents(way["communication_share"])


SHARD_HEAD = (
    "processes", "weights that train", "number type", "plan, MB", "measured, MB (least-most)", "plan / measured",
    "bytes of a weight: plan", "measured",
)  # fmt: skip


def shard_rows(report: Report) -> Iterator[Sequence[str]]:
    """A run a row: the memory of one of its processes."""
    for row in report["rows"]:
        low, high = row["measured_low"] / 1e6, row["measured_high"] / 1e6
        yield (
            str(row["processes"]), "in parts" if row["shard"] else "whole", row["precision"],
            f"{row['planned_bytes'] / 1e6:.0f}", f"{row['measured_bytes'] / 1e6:.0f} ({low:.0f}-{high:.0f})",
            f"{row['ratio']:.2f}", f"{row['planned_per_weight']:.1f}", f"{row['measured_per_weight']:.1f}",
        )  # fmt: skip


def _span(values: Sequence[float]) -> str:
    return f"{values[0]:.2f}-{values[1]:.2f}"


def _reached(values: Sequence[float] | None) -> str:
    """Of one way to checkpoint, or between two."""
    return "-" if values is None else f"{values[0]:.0%}" if values[0] == values[1] else _percents(values)


def _percents(values: Sequence[float]) -> str:
    return f"{values[0]:.0%}-{values[1]:.0%}"


def _cells(found: Report) -> tuple[str, str, str]:
    low, high = found["plan"]
    planned_words = f"{_number(low)}" if high / low < 1.005 else f"{_number(low)}-{_number(high)}"
    if found["published"] is None:
        return planned_words, "-", "-"
    ends = "inside" if found["ratio"] == 1 else f"{found['ratio']:.2f}"
    return planned_words, _number(found["published"]), ends


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


COST_HEAD = (
    "device", "how known", "weights", "batch", "latent: $", "in words: $", "bare answer: $", "latent: kWh",
    "in words: kWh", "an answer with latents, s",
)  # fmt: skip
CHECK_HEAD = (
    "measured on", "mode", "measured, s", "by the datasheet's sum, s", "estimate / measured",
)  # fmt: skip


def cost_rows(report: Report) -> Iterator[Sequence[str]]:
    """A million answers on a device, by mode."""
    for row in report["rows"]:
        modes = row["modes"]
        known = "**measured**" if row["measured"] else "by datasheet, not run"
        dollars = (_ends(modes[mode]["usd"]) for mode in ("latent", "words", "direct"))
        energy = (_ends(modes[mode]["kwh"]) for mode in ("latent", "words"))
        yield (
            row["description"], known, row["type"], str(row["batch"]), *dollars, *energy,
            _ends(modes["latent"]["sec"]),
        )  # fmt: skip


def cost_check_rows(report: Report) -> Iterator[Sequence[str]]:
    """What the sum says of devices that were measured."""
    for row in report["rows"]:
        for mode, found in row["modes"].items() if row["measured"] else ():
            ends = "inside" if found["ratio"] == 1 else f"{found['ratio']:.2f}"
            yield row["description"], mode, _short(found["sec"][0]), _ends(found["estimate"]), ends


def _ends(values: Sequence[float]) -> str:
    low, high = values
    return _short(low) if low == high else f"{_short(low)}-{_short(high)}"


def _short(value: float) -> str:
    """Two or three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2g}"
