"""The next latent's input embedding: a hidden state (eq. 1; method section 1), or a constant of the step (section 9).

Place in the pipeline: think.py begins every latent step with it.
"""

from collections.abc import Callable

from lrkit.contract.settings import ThinkSettings
from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.table_rows import choice
from lrkit.export.graph.writer import Writer
from lrkit.export.weights.source import Source

Step = Callable[[], Value]
"""Makes the number of the step, from 0, [1]."""


def next_input(g: Graph, source: Source, dialect: Writer, hidden: Value, step: Step) -> Value:
    """What a latent step is fed behind a token with `hidden` (1, D): (1, D).

    Raises:
        ExportError: no program can be built for the setting.
    """
    return choice(LATENTS, source.settings.think.latents, "think.latents")(g, source, dialect, hidden, step)


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


def _fed_back(g: Graph, source: Source, dialect: Writer, hidden: Value, step: Step) -> Value:
    return as_input(g, source, dialect, hidden)


def _paused(g: Graph, source: Source, dialect: Writer, hidden: Value, step: Step) -> Value:
    """Steps beyond those learned have the constant of the last."""
    number = g.op("Min", step(), [source.settings.think.max_latent_steps - 1])
    constant = g.op("Gather", dialect.vector(g, "latent.constant_TD"), number, axis=0)
    return as_input(g, source, dialect, constant)


LATENTS: dict[str, Callable[[Graph, Source, Writer, Value, Step], Value]] = {
    "fed_back": _fed_back, "pause": _paused,
}  # fmt: skip
"""By `ThinkSettings.latents`. Latents that are taken at once are none of a loop's steps."""


def check_latents(think: ThinkSettings) -> None:
    """Asked before anything is built.

    Raises:
        ExportError: no program can be built for such latents.
    """
    choice(LATENTS, think.latents, "think.latents")
