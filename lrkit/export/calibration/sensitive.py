"""Which matrices suffer most from being rounded, and `--keep-sensitive N`, which keeps the N worst in more bits.

The rank is by weights: ||W - Q|| / ||W|| of a matrix rounded to nearest, whatever the method; it needs no data. One
whose largest weights are far above the others is the worst. What calibration knows besides is recorded, `off`: how far
products are off. It ranks worse (docs/int4.md).

Place in the pipeline: bundle.py asks `rank_weights`, then `KeepSensitive.chosen` for the target that the programs are
calibrated and written by. made.py notes `off` of every matrix that is calibrated.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lrkit.contract.quantized import Quantized
from lrkit.contract.schemes import FLOAT
from lrkit.errors import ExportError, UserError
from lrkit.export.targets.target import Target
from lrkit.export.weights.integers import error_of
from lrkit.export.weights.quantizers.quantizer import Calibration, quantized
from lrkit.export.weights.source import Source

MEASURE = "||W - Q|| / ||W||, rounded to nearest"
"""For bundle.json."""
KEPT_AS = ("int8", FLOAT)
"""How sensitive matrices may be kept; the first is the default."""
MOST_ROWS = 512
"""Rows of a matrix whose products are compared, evenly spread."""
Ranks = Mapping[str, float]
"""Role of a matrix -> its error, the worst first."""


def off(weight: np.ndarray, made: Quantized, calibration: Calibration) -> float:
    """||(W - Q) x|| / ||W x|| of a matrix (out, in), root of mean squares over the inputs x."""
    hessian, step = calibration.hessian, -(-len(weight) // MOST_ROWS)
    rows, held = weight[::step], made.values(slice(None, None, step))
    whole, wrong = (float(np.vdot(one @ hessian, one)) for one in (rows, rows - held.reshape(rows.shape)))
    return (max(wrong, 0.0) / max(whole, 1e-60)) ** 0.5


def rank_weights(source: Source, target: Target) -> Ranks:
    """All matrices of layers that become integers of 4 bits, the worst first."""
    found: dict[str, float] = {}
    for role in roles_of(source):
        scheme = target.scheme_for(role, "layers")
        if scheme is None or not _has_four_bits(target, role):
            continue
        weight = source.weight(role)
        made = quantized(weight, scheme, target.int4.block, role, None, "rtn")
        if made is not None:
            found[role] = error_of(weight, made)
    return ranked(found)


def _has_four_bits(target: Target, role: str) -> bool:
    scheme = target.scheme_for(role, "layers")
    return role != "head" and scheme is not None and scheme.bits == 4


def roles_of(source: Source) -> Iterator[str]:
    """The matrices of all layers."""
    inner = "gate_up" if source.dimensions.recipe.gated else "up"
    for number in range(source.dimensions.num_layers):
        yield from (f"{number}.{name}" for name in ("qkv", "out", inner, "down"))


def ranked(errors: Mapping[str, float]) -> Ranks:
    """The worst first; equals in the order of the layers."""
    return dict(sorted(errors.items(), key=lambda pair: -pair[1]))


@dataclass
class KeepSensitive:
    """Keeps the worst matrices of the first program in more bits, and the same ones in the others."""

    count: int
    kept_as: str = KEPT_AS[0]
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    """For bundle.json, once it has chosen."""

    def __post_init__(self) -> None:
        """Raises `UserError` for less than none, or what a matrix cannot be kept as."""
        if self.count < 0:
            raise UserError(f"--keep-sensitive is {self.count}; give a number of matrices, 0 or more")
        if self.kept_as not in KEPT_AS:
            raise UserError(
                f"--keep-sensitive keeps matrices as {' or '.join(KEPT_AS)}, not {self.kept_as!r}; set --keep-as"
            )

    def check(self, target: Target) -> None:
        """Raises `UserError` where a target rounds no layers to 4 bits with scales by block."""
        if self.count and not (target.scheme.integers and target.scheme.bits == 4):
            raise UserError(
                f"--keep-sensitive keeps some of the matrices that have 4 bits, and precision {target.precision} has "
                "none; ask for --int4, or leave it out"
            )

    def chosen(self, target: Target, ranks: Ranks) -> Target:
        """The target with the worst matrices kept.

        Raises:
            ExportError: there are fewer.
        """
        ranks = {role: ranks[role] for role in ranked(ranks) if _has_four_bits(target, role)}
        if self.count > len(ranks):
            raise ExportError(
                f"--keep-sensitive is {self.count}, and {len(ranks)} matrices of layers have 4 bits; give at most so "
                "many, or export with precision=int8"
            )
        kept = list(ranks)[: self.count]
        self.report |= {"measure": MEASURE, "kept": kept, "kept_as": self.kept_as, "errors": dict(ranks)}
        values = target.model_dump(mode="json")
        values["int4"]["matrices"] = {**values["int4"]["matrices"], **dict.fromkeys(kept, self.kept_as)}
        return Target.model_validate(values)

    @property
    def recorded(self) -> dict[str, Any]:
        """For the provenance of a bundle."""
        return {"sensitive": self.report} if self.report else {}


NONE_KEPT = KeepSensitive(0)
"""All are held as the target says."""
