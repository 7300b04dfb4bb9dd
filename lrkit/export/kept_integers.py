"""Which of a checkpoint's integers a program keeps, by what its target says, and what is said of the others.

Place in the pipeline: bundle.py asks it for a program's integers before a quantizer makes them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lrkit.contract.bundle.manifest import Role
from lrkit.contract.quantized import Quantized
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import Source
from lrkit.export.weights.stored_integers import symmetric


@dataclass
class KeptIntegers:
    """Of one program. A call gives the integers of a matrix by its role, None where they are to be made."""

    source: Source
    target: Target
    before: Mapping[str, Quantized] = field(default_factory=dict[str, Quantized])
    """Integers that were calibrated, which go first."""
    kept: list[str] = field(default_factory=list[str])
    again: list[str] = field(default_factory=list[str])
    """Rounded once more, though the checkpoint has integers for them."""
    merged: list[str] = field(default_factory=list[str])
    """Of those the ones that an adapter is merged into."""

    def __call__(self, role: str) -> Quantized | None:
        if not self.target.scheme.integers:
            return self.before.get(role)
        found, calibrated = self.source.stored(role), self.before.get(role)
        made = found if found is not None and calibrated is None and self._takes(role, found) else None
        if made is not None:
            _note(self.kept, role)
            return made if self._takes_zeros(role) else symmetric(made)
        merged = self.source.merged_into(role)
        if merged:
            _note(self.merged, role)
        if merged or found is not None:
            _note(self.again, role)
        return calibrated

    def _takes(self, role: str, found: Quantized) -> bool:
        int4 = self.target.int4
        if int4.stored == "none" or int4.method != "rtn":
            return False
        if role == "embedding":
            # TensorRT takes bytes with a scale for each row of a table, not for each block.
            return int4.stored == "all" and self.target.dialect == "ort"
        if role == "head":
            return int4.stored == "all"
        scheme = self.target.scheme_for(role, "layers")
        return scheme is not None and not scheme.by_row and scheme.bits == found.bits

    def _takes_zeros(self, role: str) -> bool:
        """Whether the target's operator reads zero points: of TensorRT none does, unless offsets were asked for."""
        scheme = self.target.scheme_for(role, role if role in ("head", "embedding") else "layers")
        offsets = scheme is not None and scheme.offsets
        return self.target.dialect == "ort" or self.target.openvino is not None or offsets

    @property
    def report(self) -> dict[str, Any]:
        """For the provenance of a bundle; empty where the checkpoint has no integers."""
        if not self.kept and not self.again:
            return {}
        return {"format": self.source.stored_as, "kept": len(self.kept), "rounded_again": sorted(self.again)}

    @property
    def note(self) -> str:
        """What is said of matrices that were rounded twice; empty without any."""
        if not self.again:
            return ""
        named = self.again[0] if len(self.again) == 1 else f"{self.again[0]} and {len(self.again) - 1} more matrices"
        apart = "--adapter keep, " if self.merged else ""
        return (
            f"the checkpoint holds {named} as {self.source.stored_as} integers, which this target rounds once more; "
            f"they are kept with {apart}precision int4 or int8, as many bits as theirs, int4.stored=all and the method "
            "rtn"
        )


def _note(noted: list[str], role: str) -> None:
    if role not in noted:
        noted.append(role)


def report_of_kept(kept: Mapping[Role, KeptIntegers]) -> dict[str, Any]:
    """For the provenance of a bundle, by program."""
    found = {role: one.report for role, one in kept.items() if one.report}
    return {"stored_integers": found} if found else {}


def say_what_is_rounded_again(kept: Mapping[Role, KeptIntegers], say: Callable[[str], None]) -> None:
    """One note, however many programs it is about."""
    for note in dict.fromkeys(one.note for one in kept.values() if one.note):
        say(note)
