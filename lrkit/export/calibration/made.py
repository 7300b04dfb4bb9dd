"""What a calibration makes of matrices: their integers, and the factors of their columns where the method has some.

Place in the pipeline: calibrate.py rounds some layers at a time by `round_matrices`; bundle.py builds a program of all.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from lrkit.contract.quantized import Quantized
from lrkit.contract.schemes import Method, Scheme
from lrkit.export.calibration.matrices import Matrix
from lrkit.export.calibration.scaling import column_factors, rescaled_calibration
from lrkit.export.calibration.sensitive import off
from lrkit.export.weights.layer_recipe import LayerRecipe
from lrkit.export.weights.quantizers.quantizer import Calibrate, quantized
from lrkit.export.weights.rescaled import can_rescale, rescaled
from lrkit.files import replacing


@dataclass
class Made:
    """By role of a matrix."""

    integers: dict[str, Quantized] = field(default_factory=dict[str, Quantized])
    """Of the weights as the factors make them."""
    factors: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    """Of columns (in,): weights/rescaled.py. Only of what is rescaled."""
    off: dict[str, float] = field(default_factory=dict[str, float])
    """How far its products are off: sensitive.py. Only of what was calibrated."""

    def add(self, other: "Made") -> None:
        """Those of other layers too."""
        self.integers |= other.integers
        self.factors |= other.factors
        self.off |= other.off


@dataclass(frozen=True)
class Rounding:
    """How matrices are rounded."""

    scheme_for: Callable[[str, str], Scheme | None]
    """(role, part) -> scheme: `Target.scheme_for`."""
    block: int
    method: Method
    recipe: LayerRecipe


def round_matrices(
    how: Rounding, matrices: Iterable[Matrix], weight: Callable[[str], np.ndarray], calibration: Calibrate,
    say: Callable[[str], None] = lambda role: None,
) -> Made:  # fmt: skip
    """The integers of whole layers, of which `weight` gives the matrices as they are.

    Raises:
        ExportError: a calibration is of no use.
    """
    given = [(one, how.scheme_for(one.role, one.part)) for one in matrices]
    made = Made()
    for matrix, scheme in given if how.method == "awq" else ():
        data = calibration(matrix.role)
        if scheme is not None and data is not None and can_rescale(matrix.role, how.recipe):
            say(f"scaling {matrix.role}")
            made.factors[matrix.role] = column_factors(weight(matrix.role), data, scheme, how.block)
    for matrix, scheme in given:
        say(f"rounding {matrix.role}")
        role, data = matrix.role, calibration(matrix.role)
        if data is not None and role in made.factors:
            data = rescaled_calibration(data, made.factors[role])
        whole = rescaled(role, weight(role), made.factors)
        found = None if scheme is None else quantized(whole, scheme, how.block, role, data, how.method)
        if found is not None:
            made.integers[role] = found
            if data is not None:
                made.off[role] = off(whole, found, data)
    return made


def store(file: Path, made: Made) -> None:
    """Keeps it for a later run."""
    arrays: dict[str, np.ndarray] = {f"{role}/factors": factors for role, factors in made.factors.items()}
    for role, one in made.integers.items():
        whole = np.ascontiguousarray(one.integers)
        arrays |= {f"{role}/integers": whole, f"{role}/scales": one.scales, f"{role}/bits": np.array(one.bits)}
        if one.zeros is not None:
            arrays[f"{role}/zeros"] = one.zeros
    arrays |= {f"{role}/off": np.array(value) for role, value in made.off.items()}
    with replacing(file) as place:
        save_file(arrays, place)


def stored(file: Path) -> Made | None:
    """What an earlier run has left; None where it has not, or not whole."""
    if not file.is_file():
        return None
    arrays = load_file(file)
    by_kind: dict[str, dict[str, np.ndarray]] = {}
    for name, value in arrays.items():
        role, _, kind = name.partition("/")
        by_kind.setdefault(kind, {})[role] = value
    zeros: Mapping[str, np.ndarray] = by_kind.get("zeros", {})
    return Made(
        {
            role: Quantized(integers, by_kind["scales"][role], int(by_kind["bits"][role]), zeros.get(role))
            for role, integers in by_kind.get("integers", {}).items()
        },
        by_kind.get("factors", {}),
        {role: float(value) for role, value in by_kind.get("off", {}).items()},
    )
