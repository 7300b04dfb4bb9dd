"""Adapters at run time: which checkpoints may share one program, and their files in ONNX Runtime's format.

    lrkit export CHECKPOINT --with-adapter NAME=OTHER     # OTHER: trained over the same base, with the same settings

Place in the pipeline: bundle.py builds the program of CHECKPOINT, whose own adapter is the default, and asks here for
the files of the others. Each is compared with torch like a program.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from lrkit.checkpoints.tensors.stored import StoredTensor, Weight, same_values
from lrkit.checkpoints.whole_weights import CheckedWeights, check_weights
from lrkit.contract.bundle.io_spec import Form
from lrkit.contract.bundle.manifest import AdapterEntry, AdapterName, ProgramEntry, Role, Validation
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import ExportError, UserError, shown
from lrkit.export.graph.swaps import swap_value
from lrkit.export.subject import CheckpointOrigin, CheckpointSubject, Subject
from lrkit.export.targets.target import Target
from lrkit.export.weights.rescaled import Factors
from lrkit.export.weights.source import Source
from lrkit.runtime.engines.onnxruntime.session import OrtGraph, load_adapter

_CONSTANTS = ("latent.norm", "latent.scale")
"""What is compiled into a program as a number."""


@dataclass
class Swaps:
    """The adapters that the first program of a bundle can be run with."""

    given: Mapping[str, CheckpointSubject] = field(default_factory=dict[str, CheckpointSubject])
    proofs: dict[str, Validation] = field(default_factory=dict[str, Validation])
    factors: Factors = field(default_factory=dict[str, np.ndarray])
    """By which the program's weights were rescaled before they were rounded."""

    def check(self, subject: Subject, target: Target, form: Form) -> Target:
        """The target that keeps adapters apart. Raises `ExportError` or `UserError` where they cannot share a
        program."""
        if not self.given:
            return target
        if target.adapter == "merge":
            raise UserError("--with-adapter switches adapters, and --adapter merge leaves none; give --adapter keep")
        if form == "step" or not target.on_cpu or target.computes_fp16:
            raise UserError(
                "--with-adapter is for a program in the dialect ort on a CPU, in float32 beside its integers: what was "
                "measured; leave --form, fp16 and other targets out"
            )
        if not isinstance(subject, CheckpointSubject):
            raise UserError("random weights have no other adapters; leave --with-adapter out")
        for name, other in self.given.items():
            _check_name(name)
            _check_fits(name, subject, other)
        return target.model_copy(update={"adapter": "keep"})

    def of(self, role: Role, first: Role) -> bool:
        """Whether they belong to the program `role`."""
        return bool(self.given) and role == first

    def write(self, folder: Path, role: Role, entry: ProgramEntry) -> ProgramEntry:
        """Writes a file for each; the program's entry with them in it."""
        found: dict[str, AdapterEntry] = {}
        for name, other in self.given.items():
            origin, file = CheckpointOrigin(other.folder), f"{role}.{name}.onnx_adapter"
            write_adapter(folder / file, entry.swaps, origin.source(keep=True).rescaled(self.factors))
            found[name] = AdapterEntry(file=file, checkpoint=other.name, rank=origin.settings.lora.rank)
        return entry.model_copy(update={"adapters": found})


def adapted_session(session: Any, file: Path, swaps: tuple[str, ...]) -> OrtGraph:
    """A program's session, run with the adapter of a file. Raises `BundleError` where that is none of the program's."""
    return OrtGraph(session, file).with_adapter(load_adapter(file, swaps))


def write_adapter(file: Path, swaps: tuple[str, ...], source: Source) -> None:
    """Writes what `source` has for each of the inputs `swaps`, in ONNX Runtime's format."""
    import onnxruntime

    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(swap_value(name, source)) for name in swaps}
    made = onnxruntime.AdapterFormat()  # it takes texts, whatever its annotations say
    made.set_adapter_version(1)
    made.set_model_version(1)
    made.set_parameters(values)
    made.export_adapter(str(file))  # pyright: ignore[reportArgumentType]


def _check_name(name: str) -> None:
    try:
        TypeAdapter[str](AdapterName).validate_python(name)
    except ValidationError as error:
        raise UserError(
            f"--with-adapter names an adapter {shown(name, 60)}; use letters, digits, '.', '_' and '-', at most 60"
        ) from error


def _check_fits(name: str, subject: CheckpointSubject, other: CheckpointSubject) -> None:
    """The same base, the same settings but for the adapter's own, the same words and pictures."""
    first, second = check_weights(subject.folder), check_weights(other.folder)
    for one, checked in ((subject, first), (other, second)):
        if not checked.adapter:
            raise ExportError(f"{one.folder} has no adapter, and adapters are to be switched; give one trained by LoRA")
    mine, theirs = _structure(first.settings), _structure(second.settings)
    for key, value in mine.items():
        if theirs[key] != value:
            raise ExportError(
                f"the adapter {name} was trained with {key} {shown(theirs[key], 60)}, the program has "
                f"{shown(value, 60)}; adapters of one program differ in weights and rank alone"
            )
    if (odd := _other_weight(first, second)) is not None:
        raise ExportError(
            f"the adapter {name} has another base than {subject.name} ({odd} differs); give checkpoints of one base"
        )
    if _files(subject) != _files(other):
        raise ExportError(
            f"the adapter {name} has other words, pictures or prompts than {subject.name}; export it alone"
        )


def _structure(settings: ReasonerSettings) -> dict[str, Any]:
    """What a program is built by, by dotted name."""
    parts: dict[str, Any] = {name: dict(getattr(settings, name)) for name in ("think", "replay", "routing", "prune")}
    del parts["think"]["gradient"]  # training alone knows it
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def _other_weight(first: CheckedWeights, second: CheckedWeights) -> str | None:
    """The first weight that the two do not share; None where they share all."""
    for name in sorted(first.backbone.keys() | second.backbone.keys()):
        one, other = first.backbone.get(name), second.backbone.get(name)
        if one is None or other is None:
            return name
        if not _same(one, other):
            return name
    for name in _CONSTANTS:
        if name in first.extras and not same_values(first.extras[name], second.extras[name]):
            return name
    return None if first.latent_id == second.latent_id else "the latent token"


def _same(one: Weight, other: Weight) -> bool:
    """Whether two weights have the same values; one tensor of one file has."""
    if one.name == other.name and one.file.resolve() == other.file.resolve():
        return True
    if isinstance(one, StoredTensor) and isinstance(other, StoredTensor):
        return same_values(one, other)
    return one.shape == other.shape and np.array_equal(one.read(), other.read())


def _files(subject: CheckpointSubject) -> dict[str, bytes]:
    """What its processor is, byte for byte."""
    with tempfile.TemporaryDirectory(prefix="lrkit-") as place:
        subject.processor.save(Path(place))
        return {path.name: path.read_bytes() for path in sorted(Path(place).iterdir())}
