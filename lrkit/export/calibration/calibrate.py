"""Calibrated integers of all layers of a reasoner: some layers at a time, each behind those that are rounded already.

    for some layers:  answer the calibration set --gather.py--> Hessians --quantizer--> integers --> torch's weights

Only so many layers are gathered at a time as a bound of memory allows. What is done is kept in a folder, so that a
calibration that was interrupted goes on from there.

Place in the pipeline: bundle.py calls `Calibrator.made` for a program, then builds it from what it gives.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.manifest import Limits, Role
from lrkit.errors import ExportError
from lrkit.export.calibration.fast_numbers import quicken
from lrkit.export.calibration.gather import CalibrationSet, gather, guess_counts
from lrkit.export.calibration.made import Made, Rounding, round_matrices, store, stored
from lrkit.export.calibration.matrices import Matrices, Matrix
from lrkit.export.calibration.sensitive import ranked
from lrkit.export.calibration.sums import PHASES, Phase, Sums, Symmetric, shares_of
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import Source, read_source
from lrkit.files import write_json
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import Processor

MEMORY: Mapping[str, int] = {"float32": 3 << 30, "bfloat16": 6 << 30}
"""Bytes of Hessians that are held at a time, where one layer has not more, by what the model computes in: a model of a
billion weights in bfloat16 has left so much more of them."""
STATE_FILE = "calibration.json"
COUNTS_FILE = "inputs.json"
GUESS_FILE = "guess.json"
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
    memory: int | None = None
    """As `MEMORY` where it is None."""
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
        layers = matrices.all()
        weights: list[Any] = [one.module.weight for layer in layers for one in layer if one.part == "layers"]
        numbers = quicken(reasoner, weights)
        say(f"{role}: computing in {numbers}", 0, 0)
        phases = sum(self.given.mix[phase] > 0 for phase in PHASES) if self.given.samples else 1
        memory = MEMORY.get(numbers, MEMORY["float32"]) if self.memory is None else self.memory
        apart = phases == 1 or phases * sum(map(_bytes_of, layers)) <= memory
        asked = (reasoner, processor, role, limits, self.given)
        shares = None if apart else self._shares(folder, partial(guess_counts, *asked, layers[0][0]))
        made, groups = Made(), list(groups_of(layers, memory))
        for group in groups:
            found = self._round(folder, role, group, partial(gather, *asked), shares, source, say)
            for matrix in (one for layer in group.layers for one in layer):
                matrices.hold(matrix, found.integers[matrix.role], found.factors)
            made.add(found)
        seconds = time.perf_counter() - started
        self.report[role] = {
            "set": self.given.name, "method": self.target.int4.method, "inputs": _counts(folder),
            "mix": dict(self.given.mix), "numbers": numbers, "rounds": len(groups), "seconds": round(seconds, 1),
            "off": ranked(made.off),
        }  # fmt: skip
        return made

    def _shares(self, folder: Path, guess: Callable[[], dict[Phase, int]]) -> dict[Phase, float]:
        """What an input of a phase counts, where all phases have one sum."""
        file = folder / GUESS_FILE
        if not file.is_file():
            write_json(file, guess())
        return shares_of(self.given.mix, _read_counts(file))

    def _round(
        self, folder: Path, role: Role, group: "Group", read: Callable[..., dict[str, Sums]],
        shares: Mapping[Phase, float] | None, source: Source, say: Say,
    ) -> Made:  # fmt: skip
        """Integers of some layers, which are gathered together; each is kept once it is rounded."""
        files = [folder / f"{group.first + i}.safetensors" for i in range(len(group.layers))]
        done = [stored(file) for file in files]
        if None in done:
            matrices = [matrix for layer in group.layers for matrix in layer]
            what = f"{role}: calibrating {matrices[0].role} to {matrices[-1].role}"
            kept = folder / f"{group.first}.sums"
            sums = read(matrices, partial(say, what), shares, kept)
            _check_enough(sums, self.given.name)
            if not (folder / COUNTS_FILE).is_file():
                write_json(folder / COUNTS_FILE, sums[matrices[0].role].count)
            for i, layer in enumerate(group.layers):
                if (found := done[i]) is None:
                    found = done[i] = self._rounded(layer, sums, source, lambda text: say(f"{role}: {text}", 0, 0))
                    store(files[i], found)
                for matrix in layer:
                    del sums[matrix.role]
            kept.unlink(missing_ok=True)
        made = Made()
        for one in done:
            made.add(one or Made())
        return made

    def _rounded(
        self, layer: Sequence[Matrix], sums: Mapping[str, Sums], source: Source, say: Callable[[str], None]
    ) -> Made:
        int4 = self.target.int4
        how = Rounding(self.target.scheme_for, int4.block, int4.method, source.dimensions.recipe)
        return round_matrices(how, layer, source.weight, lambda role: sums[role].calibration(self.given.mix), say)

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
    return _read_counts(folder / COUNTS_FILE)


def _read_counts(file: Path) -> dict[Phase, int]:
    held: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
    return {phase: held.get(phase, 0) for phase in PHASES}


@dataclass
class Group:
    """Layers that are gathered together."""

    first: int
    """Number of the first."""
    layers: list[list[Matrix]]


def _bytes_of(layer: Iterable[Matrix]) -> int:
    return sum(Symmetric.bytes_of(matrix.width) for matrix in layer)


def groups_of(layers: Sequence[list[Matrix]], memory: int) -> Iterator[Group]:
    """As many layers as have sums that fit into `memory`, at least one."""
    group, held = Group(0, []), 0
    for number, layer in enumerate(layers):
        size = _bytes_of(layer)
        if group.layers and held + size > memory:
            yield group
            group, held = Group(number, []), 0
        group.layers.append(layer)
        held += size
    if group.layers:
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
