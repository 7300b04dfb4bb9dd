"""Sizes of a model, for ceilings: what an engine says of the weights behind it. Torch-free.

Place in the pipeline: `Engine.counts` (programs/counts.py, torch/counts.py) -> lrkit/profile/ceilings/roofline.py.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from lrkit.contract.settings import ReasonerSettings

PARTS = ("vision", "embedding", "layers", "chunks", "head", "routing")
"""`chunks`: the layers' matrices a second time, as the prompt reads them."""


@dataclass(frozen=True)
class Attention:
    """Widths that attention's products need."""

    query_width: int
    key_width: int
    """Of all key heads together."""
    cache_bytes: float
    """Per cached value."""
    vision_width: int
    vision_depth: int
    """Layers of the tower in which a patch sees its whole picture."""
    vision_windows: tuple[tuple[int, int], ...] = ()
    """Its other layers: how many, and how many patches one sees in them at most."""


@dataclass(frozen=True)
class ModelCounts:
    """Sizes of a model, counted or, for a bundle, from its bytes by part."""

    weight_bytes: dict[str, float]
    """By `PARTS`; vision with its merger."""
    weights: dict[str, float]
    """Weights in matrices: vision, merger, layers, head. What vision multiplies more than once for each patch counts as
    often."""
    num_layers: int
    merge_area: int
    """Patches per visual token."""
    settings: ReasonerSettings
    attention: Attention | None = None
    """None where the widths are not known (bundles of an earlier lrkit): attention is then not counted."""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        return {**values, "settings": self.settings.model_dump(mode="json"), "notes": list(self.notes)}


@dataclass
class Sums:
    """Sums by part while counting."""

    bytes: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("merger", *PARTS), 0.0))
