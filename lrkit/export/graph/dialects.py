"""The table of dialects: who writes each.

Place in the pipeline: bundle.py asks for the writer of a target.
"""

from collections.abc import Callable, Mapping

import numpy as np

from lrkit.contract.bundle.manifest import Dialect as Name
from lrkit.export.graph.dialect import Dialect
from lrkit.export.graph.ort_writer import OrtWriter
from lrkit.export.graph.saving import WeightFile
from lrkit.export.graph.standard_writer import StandardWriter
from lrkit.export.targets.target import Target
from lrkit.export.weights.recipe import Norm

WRITERS: Mapping[Name, type[Dialect]] = {"ort": OrtWriter, "tensorrt": StandardWriter}
"""By `Target.dialect`."""


def writer_for(
    target: Target, read: Callable[[str], np.ndarray], norms: Norm, file: WeightFile | None = None
) -> Dialect:
    """The writer of the target's dialect; the rest as `Dialect` takes it."""
    return WRITERS[target.dialect](target, read, norms, file)
