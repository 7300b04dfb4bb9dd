"""A checkpoint as something to export whose torch side holds the values that a program's integers stand for.

Random weights have no right answers, which rounding could cost. So the comparison with torch shows a wrong graph alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.manifest import AdapterKind, Role
from lrkit.contract.settings import ReasonerSettings
from lrkit.export.subject import CheckpointOrigin, CheckpointSubject, Origin
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import Source
from lrkit.families.table import read_layout
from lrkit.model.reasoner import LatentReasoner
from tests.programs import with_rounded_weights


@dataclass(frozen=True)
class RoundedOrigin:
    """One checkpoint, for a target."""

    stored: CheckpointOrigin
    target: Target

    @property
    def settings(self) -> ReasonerSettings:
        return self.stored.settings

    @property
    def adapted(self) -> bool:
        return self.stored.adapted

    def keeps(self, asked: AdapterKind | None) -> bool:
        return self.stored.keeps(asked)

    def source(self, keep: bool = False) -> Source:
        return self.stored.source(keep)

    def reasoner(self, keep: bool = False) -> LatentReasoner:
        held = self.stored.reasoner(keep)
        if not self.target.scheme.integers:
            return held
        return with_rounded_weights(held, self.target, read_layout(self.stored.folder).family)


class RoundedSubject(CheckpointSubject):
    """Implements `Subject` (lrkit/export/subject.py)."""

    check_rounded = True

    def __init__(self, folder: Path, target: Target) -> None:
        super().__init__(folder)
        self.target = target

    def origins(self, baselines: bool) -> dict[Role, Origin]:
        found: dict[Role, Any] = super().origins(baselines)
        return {role: RoundedOrigin(origin, self.target) for role, origin in found.items()}
