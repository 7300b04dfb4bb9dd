"""The table of `lrkit probe`: the shipped models with other latents in place of their own. tables.py shows it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = (
    "model", "seed", "latent", "direct", "zeros", "mean", "noise", "donor", "replayed at random",
    "follow the donor", "follow what it replays", "verdict",
)  # fmt: skip


def rows(report: dict[str, Any]) -> Iterable[Sequence[str]]:
    """Accuracy with other latents and with other replayed tokens, and how many answers follow a donor's."""
    right = report["accuracy"]
    shares = (_share(right[name]) for name in ("latent", "direct", "zero", "mean", "noise", "donor"))
    drawn = report["input"].get("replay", {}).get("right", {}).get("value")
    looks = report["latents"].get("looks", {}).get("followed", {}).get("value")
    by_looks = " by where it looks" if "by where they look" in report["sentence"] else ""
    yield (
        _name(report), str(report["seed"]), *shares, _share(drawn),
        f"{report['followed']:.1%} of {report['with_donor']}", _share(looks), f"{report['verdict']}{by_looks}",
    )  # fmt: skip


def _name(report: Mapping[str, Any]) -> str:
    """Model, engine, number type, and the pictures where they are not the usual ones."""
    model = report["model"] if report["model"].startswith("tiny/") else Path(report["model"]).name
    data = "" if report["data"] == "trail:main" else f" on `{report['data']}`"
    return f"`{model}`{data}, {report['runs_on']['engine']}, {report['runs_on']['dtype']}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
