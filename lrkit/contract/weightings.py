"""The replay weightings that a reasoner may have: one row each, with the function that torch trains by and what writes
the same into a program.

Place in the pipeline: settings.py allows these names; lrkit/model/replay.py and lrkit/export/graph/replay_nodes.py load
their half of a row when they weigh. A new weighting is both halves and a row here.

Legend: B batch, K replayed tokens.
"""

from dataclasses import dataclass

from pydantic_core import PydanticKnownError


@dataclass(frozen=True)
class WeightingRow:
    """Both halves of a weighting, each as "module:attribute"."""

    torch: str
    """A `Weigh` of lrkit/model/replay.py: (scores (B, K), which slots hold a token (B, K)) -> weights (B, K)."""
    graph: str
    """A `Weighting` of lrkit/export/graph/replay_nodes.py."""


WEIGHTINGS: dict[str, WeightingRow] = {
    "softmax": WeightingRow("lrkit.model.replay:by_softmax", "lrkit.export.graph.replay_nodes:SOFTMAX"),
    "relative": WeightingRow("lrkit.model.replay:by_mean", "lrkit.export.graph.replay_nodes:RELATIVE"),
    "none": WeightingRow("lrkit.model.replay:alike", "lrkit.export.graph.replay_nodes:ALIKE"),
}
"""By `ReplaySettings.weighting`."""


def known_weighting(name: str) -> str:
    """The name itself, for settings.

    Raises:
        PydanticKnownError: there is no such row; the message lists the rows.
    """
    if name not in WEIGHTINGS:
        *others, last = (repr(known) for known in WEIGHTINGS)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})
    return name
