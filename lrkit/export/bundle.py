"""Checkpoint -> bundle: builds the programs, writes them, proves them, and only then lets the folder appear.

    checkpoint --read--> source --build--> ONNX --write--> staging folder --ask the engines' builder-->
        --check against torch--> engines --rename

The source gives one matrix at a time. Torch's model is loaded after the program is written and freed. So the two are
never in memory together. If the engines' builder refuses a program, that is known before the comparison begins, and the
bundle is finished without engines.

Place in the pipeline: `lrkit export` calls `export_bundle`; lrkit/contract/bundle/bundle_folder.py opens the result.
Everything is written into a hidden neighbour of the target folder, which takes its place in one step at the end
(lrkit/folders.py). An export that is killed leaves the old bundle, the new one, or none where none was.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lrkit.contract.bundle.io_spec import Form
from lrkit.contract.bundle.manifest import (
    BUNDLE_FILE,
    EngineKind,
    Limits,
    Manifest,
    ProgramEntry,
    Role,
    StepEntry,
    StepName,
    TokenIds,
    Validation,
    digest,
)
from lrkit.contract.sample import Sample
from lrkit.contract.schemes import tolerance_in
from lrkit.errors import ExportError
from lrkit.export.before import Bounds, check_form, look_ahead, refuse_taken
from lrkit.export.calibration.calibrate import Calibrator, calibrated, finish, report_of
from lrkit.export.calibration.sensitive import NONE_KEPT, KeepSensitive, rank_weights
from lrkit.export.check import CheckSample, ProgramRun, check_program, torch_answers
from lrkit.export.check_verdict import uncompared
from lrkit.export.chosen_tokens import program_choices
from lrkit.export.graph.dialects import writer_for
from lrkit.export.graph.front import write_front
from lrkit.export.graph.latent_input import check_latents
from lrkit.export.graph.program import Program, build_program
from lrkit.export.graph.saving import WeightFile, has_twins, save_model, save_models
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.step_graphs import build_steps, save_steps, step_spec
from lrkit.export.graph.swaps import open_swaps
from lrkit.export.graph.tower_writer import Tower, chooses, write_tower
from lrkit.export.kept_integers import KeptIntegers, report_of_kept, say_what_is_rounded_again
from lrkit.export.recording import Recorder
from lrkit.export.seen_samples import SeenSamples
from lrkit.export.sessions import Comparing
from lrkit.export.sizes import program_sizes
from lrkit.export.subject import CheckpointOrigin, CheckpointSubject, Origin, Subject, check_adapters
from lrkit.export.swapped import Swaps, adapted_session
from lrkit.export.target_engines import Say, TargetEngines
from lrkit.export.targets.target import Target, limits_of, processor_of
from lrkit.export.weights.quantizers.quantizer import Calibration, uncalibrated
from lrkit.export.weights.source import Source
from lrkit.families.common.no_windows import zoomed
from lrkit.folders import locked, staged_folder
from lrkit.provenance import collect
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.encode.processor import Processor

CalibrateProgram = Callable[[Role, str], Calibration | None]
"""(program, matrix by its role) -> what it is multiplied with; None where that is not known."""
Progress = Callable[[str, int, int], None]
"""(what is going on, done, total); total 0 where it cannot be counted."""


@dataclass(frozen=True)
class ExportReport:
    """What an export made."""

    folder: Path
    manifest: Manifest
    quantization_errors: dict[str, dict[str, float]]
    """Program -> matrix -> relative error; empty without integers."""
    seconds: dict[str, float]
    """Per program and stage."""
    script: Path | None = None
    """What builds the engines on the device, where they were not built here."""


class EnginesRefused(ExportError):
    """No engine was built, and the bundle was written without; `report` is that of the bundle."""

    def __init__(self, report: ExportReport, kind: EngineKind, reason: str) -> None:
        place = report.folder
        super().__init__(
            f"{place} is whole but has no engines: {reason}; it can be used without them, and once that is mended "
            f"they are added by: lrkit engines {place} --engine {kind}"
        )
        self.report = report


def export_bundle(
    checkpoint: Path | str | Subject,
    output: Path,
    target: Target,
    samples: Sequence[Sample],
    *,
    form: Form = "program",
    baselines: bool = True,
    force: bool = False,
    allow_unproven: bool = False,
    max_loss: float | None = None, script: Path | None = None,
    calibrate: CalibrateProgram = uncalibrated, calibrator: Calibrator | None = None,
    keep: KeepSensitive = NONE_KEPT, with_adapters: Mapping[str, CheckpointSubject] | None = None,
    progress: Progress = lambda what, done, total: None, say: Say = lambda text: None,
) -> ExportReport:  # fmt: skip
    """Writes the bundle of a checkpoint (name or folder), or of another subject such as a shape, into `output`.

    `form` is one graph per program, or `step`: graphs that the host drives. `samples`, unseen in training, are what
    the programs are checked on, `baselines` makes programs of the checkpoint's own too, and `force` replaces a bundle.
    Samples that prove nothing end the export, unless `allow_unproven`; `max_loss` bounds the points of accuracy lost.
    `calibrate` says what a matrix is multiplied with, `calibrator` finds it out, `keep` keeps the most sensitive ones
    in more bits. By the adapters of the checkpoints `with_adapters`, over the same base, the first program can be run
    too. `say` gets what is urgent.

    Where the target asks for TensorRT engines they are built too; or, with `script`, what builds them on a device is
    written there. Standard TensorRT builds on the device itself: without it here, the script goes into the bundle.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ExportError: no program can be built for it, one differs from torch or is unproven, or `output` is taken.
        EnginesRefused: TensorRT refuses the program or fails; the bundle is there, without engines.
        UserError: another process exports into `output`.
        FileError: something cannot be written, as when the disk is full.
        MissingExtraError: the target asks for TensorRT-RTX engines, and the package is not installed.
    """
    subject = CheckpointSubject(resolve_checkpoint(checkpoint)) if isinstance(checkpoint, str | Path) else checkpoint
    refuse_taken(output, force)
    check_form(target, form)
    target = (swaps := Swaps(with_adapters or {})).check(subject, target, form)
    engines = TargetEngines.of(target, script)
    look_ahead(subject, target, samples, bounds := Bounds(allow_unproven, max_loss), keep, say)
    with locked(output, "writes into"), staged_folder(output, replace=True) as staging:
        refuse_taken(output, force)  # another process may have been quicker
        choosing = (calibrate, calibrator, keep)
        export = _Export(subject, staging, target, form, samples, progress, bounds, choosing, swaps)
        manifest = export.run(baselines, lambda programs: engines.ask(staging, programs, progress, say), say)
        manifest = engines.add(manifest, staging, export.seconds, progress)
        (staging / BUNDLE_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    finish(calibrator)
    return _report(output, manifest, export, engines)


def _report(output: Path, manifest: Manifest, export: "_Export", engines: TargetEngines) -> ExportReport:
    """Raises `EnginesRefused` where engines were asked for, and their builder refused."""
    report = ExportReport(output, manifest, export.errors, export.seconds, engines.finish(output, manifest))
    if engines.refusal is not None and engines.engine is not None:
        raise EnginesRefused(report, engines.engine.kind, engines.refusal)
    return report


class _Export:
    """One export in progress: everything is written into `staging`."""

    def __init__(
        self,
        subject: Subject,
        staging: Path,
        target: Target,
        form: Form,
        samples: Sequence[Sample],
        progress: Progress,
        bounds: Bounds = Bounds(),
        choosing: tuple[CalibrateProgram, Calibrator | None, KeepSensitive] = (uncalibrated, None, NONE_KEPT),
        swaps: Swaps | None = None,
    ) -> None:
        self.swaps = swaps or Swaps()
        self.bounds, (self.calibrate, self.calibrator, self.keep) = bounds, choosing
        self.subject, self.staging, self.target, self.progress = subject, staging, target, progress
        self.comparing = Comparing.of(target)
        self.tolerance = tolerance_in(target.scheme, self.comparing.products)
        self.form: Form = form
        self.processor: Processor = processor_of(target, subject.processor)
        self.samples = samples
        self.seen: SeenSamples
        self.seconds: dict[str, float] = {}
        self.errors: dict[str, dict[str, float]] = {}
        self.recorder = Recorder(staging, self.processor.geometry, samples)
        self.kept: dict[Role, KeptIntegers] = {}

    def run(self, baselines: bool, ask: Callable[[Mapping[Role, ProgramEntry]], None], say: Say) -> Manifest:
        """`ask` gets all programs once they are written, and before they are compared with torch."""
        origins = self.subject.origins(baselines)
        check_adapters(origins, self.target.adapter)
        # The latent reasoner comes first; a plain model has none, and then no latent steps.
        steps = next(iter(origins.values())).settings.think.max_latent_steps
        zoom = min(origin.settings.replay.fine_zoom for origin in origins.values())
        limits = limits_of(self.target, steps, zoomed(self.processor.geometry, zoom))
        self.seen = SeenSamples(self.processor, self.samples, limits)
        for origin in origins.values():
            check_latents(origin.settings.think)
            self.seen.encoded(origin.settings.replay)  # what cannot be read ends the export at once
        # A baseline never thinks: its program carries no latent loop.
        none = limits.model_copy(update={"max_latent_steps": 0})
        bounds: dict[Role, Limits] = {role: limits if role == "latent" else none for role in origins}
        programs: dict[Role, ProgramEntry] = {}
        for role, origin in origins.items():
            # A plain model answers in two modes by one program.
            twins: list[Role] = [
                other for other in programs if (origins[other], bounds[other]) == (origin, bounds[role])
            ]
            programs[role] = self._program(role, origin, bounds[role]) if not twins else programs[twins[0]]
            gc.collect()  # graphs are full of cycles, which hold the weights
        say_what_is_rounded_again(self.kept, say)
        ask(programs)
        proofs: dict[Role, Validation] = {}
        for role, origin in origins.items():
            proofs[role] = self._proof(role, origin, programs[role], bounds[role])
            gc.collect()
        first = next(iter(origins))
        for name, other in self.swaps.given.items():
            origin = CheckpointOrigin(other.folder)
            self.swaps.proofs[name] = self._proof(first, origin, programs[first], bounds[first], name)
        return self._manifest(limits, programs, proofs)

    def _program(self, role: Role, origin: Origin, limits: Limits) -> ProgramEntry:
        """Builds and writes one program."""
        started = time.perf_counter()
        self.progress(f"{role}: reading weights", 0, 0)
        keep = origin.keeps(self.target.adapter)
        source = origin.source(keep)
        source.swapped = self.swaps.of(role, next(iter(self.subject.origins(False))))
        weights = WeightFile(self.staging, f"{role}.onnx.data")
        norms, calibrate = source.dimensions.recipe.norm, partial(self.calibrate, role)
        processor = self.seen.processor_of(source.settings.replay)
        self._keep_sensitive(source)
        made = calibrated(self.calibrator, role, partial(origin.reasoner, keep), processor, limits, self.progress)
        source, self.swaps.factors = source.rescaled(made.factors), made.factors
        self.kept[role] = KeptIntegers(source, self.target, made.integers)
        dialect = writer_for(
            self.target, source.weight, norms, weights, calibrate, self.kept[role], source.low_rank
        )  # fmt: skip
        self.progress(f"{role}: tracing the vision tower", 0, 0)
        geometry = processor.geometry
        tower = write_tower(source, geometry, dialect)
        self.seconds[f"{role}.vision"] = time.perf_counter() - started
        self.progress(f"{role}: building the graph", 0, 0)
        entry = self._written(role, Stack(source, dialect, limits, geometry), tower)
        self.seconds[f"{role}.build"] = time.perf_counter() - started
        self.errors[role] = dict(dialect.store.errors)
        return entry

    def _keep_sensitive(self, source: Source) -> None:
        """What the first program decides, the others follow."""
        if not self.keep.count or self.keep.report:
            return
        self.progress("ranking matrices", 0, 0)
        self.target = self.keep.chosen(self.target, rank_weights(source, self.target))
        if self.calibrator is not None:
            self.calibrator.target = self.target

    def _proof(
        self, role: Role, origin: Origin, entry: ProgramEntry, limits: Limits, adapter: str | None = None
    ) -> Validation:
        """Compares what was written with torch, and records answers; without samples it does neither. With `adapter`,
        whose checkpoint `origin` then is, it compares alone."""
        replay = origin.settings.replay
        processor, encoded = self.seen.processor_of(replay), self.seen.encoded(replay)
        if not encoded or self.target.unread_on_cpu is not None:
            return uncompared("there were no samples" if not encoded else "no engine reads its weights on a CPU")
        started = time.perf_counter()
        most = self.subject.check_tokens or limits.max_new_tokens
        bounds = limits.model_copy(update={"max_new_tokens": min(most, limits.max_new_tokens)})
        count = len(encoded)
        chosen = self._chosen(role, entry, encoded)
        self.progress(f"{role}: loading torch's model", 0, 0)
        expected = torch_answers(
            origin.reasoner, processor, encoded, role, bounds,
            lambda done: self.progress(f"{role}: asking torch", done, count), chosen,
        )  # fmt: skip
        session = self.comparing.program(self.staging, entry, self.processor.end_ids)
        if adapter is not None:
            session = adapted_session(session, self.staging / entry.adapters[adapter].file, entry.swaps)
        known, who = (entry.settings, entry.routed_layers, processor), self.comparing.name
        validation = check_program(
            expected, ProgramRun(session, entry.spec, *known, bounds, role, who), encoded, self.tolerance,
            rounded=self.subject.check_rounded, bounds=self.bounds,
            progress=lambda done: self.progress(f"{role}: comparing with torch", done, count),
        )  # fmt: skip
        if adapter is None:
            self.recorder.record(role, ProgramRun(session, entry.spec, *known, limits, role, who), encoded)
        self.seconds[f"{adapter or role}.check"] = time.perf_counter() - started
        reasons = filter(None, (validation.tolerance_reason, self.subject.check_note))
        return validation.model_copy(update={"tolerance_reason": "; ".join(reasons)})

    def _written(self, role: Role, stack: Stack, tower: Tower) -> ProgramEntry:
        """Builds and writes one program in the asked form."""
        nbits = self.target.scheme.integers and self.target.dialect == "ort"
        steps: dict[StepName, StepEntry] = {}
        swaps: tuple[str, ...] = ()
        if self.form == "program":
            program = build_program(stack, self.processor.end_ids, tower)
            swaps = open_swaps(program.model) if stack.source.swapped else ()
            spec, file = program.spec, f"{role}.onnx"
            data = self._save(program, file, stack.dialect.store.file)
        else:
            built, spec = build_steps(stack, tower), step_spec(stack)
            self.progress(f"{role}: writing", 0, 0)
            files, data = save_steps(built, self.staging, role, stack.dialect.store.file)
            steps = {name: StepEntry(file=files[name], spec=step.spec) for name, step in built.items()}
            file = files["prompt"]
        entry = ProgramEntry(
            file=file, data=data, dialect=self.target.dialect, precision=self.target.precision,
            accuracy_level=self.target.int4.accuracy_level if nbits else None, adapter=stack.source.adapter,
            spec=spec, steps=steps,
            settings=stack.settings, num_layers=stack.dims.num_layers, routed_layers=tuple(stack.routers),
            bytes_by_part=dict(stack.dialect.store.part_bytes), held=stack.dialect.store.held,
            sizes=program_sizes(stack), swaps=swaps,
        )  # fmt: skip
        return self.swaps.write(self.staging, role, entry) if swaps else entry

    def _chosen(self, role: Role, entry: ProgramEntry, encoded: Sequence[CheckSample]) -> list[np.ndarray] | None:
        """The visual tokens that the program chooses for each sample; None where its tower chooses none."""
        geometry = self.processor.geometry
        if not chooses(geometry.family):
            return None
        self.progress(f"{role}: asking its vision tower", 0, 0)
        prompts = [self.processor.asked_in(sample.prompt, role) for sample in encoded]
        return program_choices(self.staging / entry.file, prompts, self.processor.image_id, geometry, self.comparing)

    def _save(self, program: Program, file: str, weights: WeightFile | None) -> str | None:
        """Writes one graph; returns the name of its data file, where it needs one."""
        self.progress(f"{file}: writing", 0, 0)
        if weights is not None and not weights.overflows and not has_twins(program.model):
            save_model(program.model, self.staging / file)
            return None
        save_models({file: program.model}, self.staging, f"{file}.data", weights)
        return f"{file}.data"

    def _manifest(
        self,
        limits: Limits,
        programs: dict[Role, ProgramEntry],
        validations: dict[Role, Validation],
    ) -> Manifest:
        self.progress("computing digests", 0, 0)
        processor = self.processor
        processor.save(self.staging)
        front = write_front(self.staging, processor) if self.target.front else None
        files = sorted(path for path in self.staging.rglob("*") if path.is_file())
        return Manifest(
            name=self.subject.name,
            target=self.target.model_dump(mode="json"),
            programs=programs,
            front=front,
            limits=limits,
            tokens=TokenIds(
                image=processor.image_id,
                latent=processor.latent_id,
                eos=processor.eos_id,
                pad=processor.pad_id,
                more_ends=processor.end_ids[1:],
            ),
            family=processor.geometry.family,
            patches_per_token=processor.geometry.patches_per_token,
            files={path.relative_to(self.staging).as_posix(): digest(path) for path in files},
            samples=tuple(self.recorder.recorded),
            made_for=self.comparing.made_for,
            validation=validations,
            adapter_validation=self.swaps.proofs,
            provenance=collect(
                checkpoint=self.subject.provenance,
                **report_of(self.calibrator),
                **report_of_kept(self.kept),
                **self.keep.recorded,
            ),
        )
