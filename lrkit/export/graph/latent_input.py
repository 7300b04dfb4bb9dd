"""A hidden state as the next latent's input embedding (eq. 1; method section 1).

Place in the pipeline: think.py begins every latent step with it.
"""

from collections.abc import Callable

from lrkit.export.graph.choices import choice
from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.writer import Writer
from lrkit.export.weights.source import Source


def as_input(g: Graph, source: Source, dialect: Writer, hidden: Value) -> Value:
    """(1, D) -> (1, D).

    Raises:
        ExportError: no program can be built for the setting.
    """
    return choice(SCALES, source.settings.think.latent_scale, "think.latent_scale")(g, source, dialect, hidden)


def _as_it_is(g: Graph, source: Source, dialect: Writer, hidden: Value) -> Value:
    return hidden


def _learned(g: Graph, source: Source, dialect: Writer, hidden: Value) -> Value:
    assert source.latent_scale is not None
    return g.op("Mul", hidden, source.latent_scale)


def _rescaled(g: Graph, source: Source, dialect: Writer, hidden: Value) -> Value:
    return dialect.scaled(g, hidden, source.latent_norm, source.dimensions.width)


SCALES: dict[str, Callable[[Graph, Source, Writer, Value], Value]] = {
    "none": _as_it_is, "learned": _learned, "embedding": _rescaled,
}  # fmt: skip
"""By `ThinkSettings.latent_scale`."""
