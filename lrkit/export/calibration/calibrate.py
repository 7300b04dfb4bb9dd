"""Calibrated integers of all layers of a reasoner: some layers at a time, each behind those that are rounded already.

    for some layers:  answer the calibration set --gather.py--> Hessians --quantizer--> integers --> torch's weights

Only so many layers are gathered at a time as a bound of memory allows. What is done is kept in a folder, so that a
calibration that was interrupted goes on from there.

Place in the pipeline: bundle.py calls `Calibrator.made` for a program, then builds it from what it gives.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.manifest import Limits, Role
from lrkit.errors import ExportError
from lrkit.export.calibration.gather import PHASES, CalibrationSet, Phase, Sums, gather, shares_of
from lrkit.export.calibration.made import Made, Rounding, round_matrices, store, stored
from lrkit.export.calibration.matrices import Matrices, Matrix
from lrkit.export.calibration.sensitive import ranked
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import Source, read_source
from lrkit.files import write_json
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import Processor

MEMORY = 3 << 30
"""Bytes of Hessians that are held at a time, where one layer has not more."""
STATE_FILE = "calibration.json"
COUNTS_FILE = "inputs.json"
Say = Callable[[str, int, int], None]
"""(what is going on, done, total)."""


@dataclass
class Calibrator:
    """Calibrates the programs of one export."""

    target: Target
    given: CalibrationSet
    folder: Path
    """Where finished layers are kept until the export is done."""
    subject: str
    """What is calibrated: changes with the checkpoint's files."""
    memory: int = MEMORY
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    """By role, for bundle.json."""

    def __post_init__(self) -> None:
        """Raises `ExportError` where there is nothing to calibrate on."""
        if not self.given.samples and not any(text.strip() for text in self.given.texts):
            raise ExportError(
                f"the calibration set {self.given.name} is empty, and int4.method={self.target.int4.method} needs what "
                "the model reads; give samples or a text with --calibration, or set int4.method=rtn"
            )

    def made(
        self, role: Role, load: Callable[[], LatentReasoner], processor: Processor, limits: Limits, say: Say
    ) -> Made:
        """The integers of all matrices of a program.

        Raises:
            ExportError: the set is too small, or its numbers are of no use.
        """
        started, folder = time.perf_counter(), self._opened(role, limits)
        reasoner = load()
        source = read_source(reasoner, keep=True)  # `load` has merged an adapter, or leaves it apart
        matrices = Matrices(reasoner, source, self.target)
        phases = sum(self.given.mix[phase] > 0 for phase in PHASES) if self.given.samples else 1
        groups = list(_groups(matrices.all(), self.memory, phases))
        made = Made()
        for number, group in enumerate(groups):
            file = folder / f"{number}.safetensors"
            found = stored(file)
            if found is None:
                what = f"{role}: calibrating {group[0].role} to {group[-1].role}"
                # The first round tells how many inputs a phase has; all others then need one sum for all phases.
                shares = shares_of(self.given.mix, _counts(folder)) if number else None
                sums = gather(reasoner, processor, role, limits, self.given, group, partial(say, what), shares)
                _check_enough(sums, self.given.name)
                found = self._rounded(group, sums, source, lambda text: say(f"{role}: {text}", 0, 0))
                if not number:
                    write_json(folder / COUNTS_FILE, sums[group[0].role].count)
                store(file, found)
            for matrix in group:
                matrices.hold(matrix, found.integers[matrix.role], found.factors)
            made.add(found)
        seconds = time.perf_counter() - started
        self.report[role] = {
            "set": self.given.name, "method": self.target.int4.method, "inputs": _counts(folder),
            "mix": dict(self.given.mix), "rounds": len(groups), "seconds": round(seconds, 1),
            "off": ranked(made.off),
        }  # fmt: skip
        return made

    def _rounded(
        self, group: Sequence[Matrix], sums: Mapping[str, Sums], source: Source, say: Callable[[str], None]
    ) -> Made:
        int4 = self.target.int4
        how = Rounding(self.target.scheme_for, int4.block, int4.method, source.dimensions.recipe)
        return round_matrices(how, group, source.weight, lambda role: sums[role].calibration(self.given.mix), say)

    def _opened(self, role: Role, limits: Limits) -> Path:
        """The folder of one program; emptied where it was of another calibration."""
        asked = {
            "subject": self.subject, "target": self.target.model_dump(mode="json"), "set": self.given.name,
            "mix": dict(self.given.mix), "questions": [sample.question for sample in self.given.samples],
            "texts": [len(text) for text in self.given.texts], "memory": self.memory, "limits": limits.model_dump(),
        }  # fmt: skip
        folder = self.folder / role
        state = folder / STATE_FILE
        if not state.is_file() or json.loads(state.read_text(encoding="utf-8")) != json.loads(json.dumps(asked)):
            shutil.rmtree(folder, ignore_errors=True)
            write_json(state, asked)
        return folder


def calibrated(
    calibrator: Calibrator | None, role: Role, load: Callable[[], LatentReasoner], processor: Processor, limits: Limits,
    say: Say,
) -> Made:  # fmt: skip
    """As `Calibrator.made`; nothing where nobody calibrates."""
    return Made() if calibrator is None else calibrator.made(role, load, processor, limits, say)


def finish(calibrator: Calibrator | None) -> None:
    """The export is done: what was kept of its layers is no longer needed."""
    if calibrator is not None:
        shutil.rmtree(calibrator.folder, ignore_errors=True)


def report_of(calibrator: Calibrator | None) -> dict[str, Any]:
    """For the provenance of a bundle."""
    return {} if calibrator is None else {"calibration": calibrator.report}


def _counts(folder: Path) -> dict[Phase, int]:
    """Inputs by phase of the first matrix, which the first round has written."""
    held: dict[str, int] = json.loads((folder / COUNTS_FILE).read_text(encoding="utf-8"))
    return {phase: held.get(phase, 0) for phase in PHASES}


def _groups(layers: Sequence[Sequence[Matrix]], memory: int, phases: int) -> Iterator[list[Matrix]]:
    """Layers together, as far as their Hessians fit into `memory`: of each phase in the first group, then one of
    all."""
    group: list[Matrix] = []
    held = 0
    for layer in layers:
        size = sum(4 * matrix.width**2 for matrix in layer)
        if group and (held + size) * phases > memory:
            yield group
            group, held, phases = [], 0, 1
        group += layer
        held += size
    if group:
        yield group


def _check_enough(sums: Mapping[str, Sums], name: str) -> None:
    """Raises `ExportError` where fewer inputs were seen than a matrix has columns."""
    role, few = max(
        ((role, one) for role, one in sums.items() if role != "head"), key=lambda pair: pair[1].width,
        default=("", Sums(0)),
    )  # fmt: skip
    if (count := sum(few.count.values())) < few.width:
        raise ExportError(
            f"the calibration set {name} gave {count} inputs of {role}, which has {few.width} columns; give at least "
            "as many inputs as columns"
        )
