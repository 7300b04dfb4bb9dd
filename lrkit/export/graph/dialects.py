"""The table of dialects: who writes each, and how its programs lay out their caches.

Place in the pipeline: bundle.py asks for the writer of a target, program.py for the layout.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lrkit.contract.bundle.manifest import Dialect
from lrkit.export.graph.caches import Caches
from lrkit.export.graph.joined_caches import JoinedCaches
from lrkit.export.graph.ort_writer import OrtWriter
from lrkit.export.graph.saving import WeightFile
from lrkit.export.graph.separate_caches import SeparateCaches
from lrkit.export.graph.standard_writer import StandardWriter
from lrkit.export.graph.weight_store import Made, none_made
from lrkit.export.graph.writer import Writer
from lrkit.export.targets.target import Target
from lrkit.export.weights.layer_recipe import Norm
from lrkit.export.weights.low_rank import Adapted, nothing_added
from lrkit.export.weights.quantizers.quantizer import Calibrate, uncalibrated


@dataclass(frozen=True)
class DialectParts:
    """One dialect."""

    writer: type[Writer]
    caches: type[Caches]
    """Of the form `program`; graphs that a host drives have separate caches in every dialect."""


DIALECTS: Mapping[Dialect, DialectParts] = {
    "ort": DialectParts(OrtWriter, JoinedCaches),
    "standard": DialectParts(StandardWriter, SeparateCaches),
}
"""By `Target.dialect`."""


def writer_for(
    target: Target, read: Callable[[str], np.ndarray], norms: Norm, file: WeightFile | None = None,
    calibrate: Calibrate = uncalibrated, made: Made = none_made, low_rank: Adapted = nothing_added,
) -> Writer:  # fmt: skip
    """The writer of the target's dialect; the rest as `Writer` takes it."""
    return DIALECTS[target.dialect].writer(target, read, norms, file, calibrate, made, low_rank)
