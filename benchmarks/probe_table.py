"""The table of `lrkit probe`: the shipped model with other latents in place of its own. tables.py shows it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HEAD = ("model", "seed", "latent", "direct", "zeros", "mean", "noise", "donor", "answers follow the donor", "verdict")


def rows(report: dict[str, Any]) -> Iterable[Sequence[str]]:
    """Accuracy with other latents, and how many answers follow a donor's."""
    right = report["accuracy"]
    shares = (f"{right[name]:.1%}" for name in ("latent", "direct", "zero", "mean", "noise", "donor"))
    engine = f"`{Path(report['model']).name}`, {report['runs_on']['engine']}, {report['runs_on']['dtype']}"
    yield (
        engine, str(report["seed"]), *shares, f"{report['followed']:.1%} of {report['with_donor']}", report["verdict"],
    )  # fmt: skip
