"""Builds TensorRT engines from the programs of a bundle, ahead of time. Torch-free.

    manifest + engine target --> plan --> one job per graph --> a process per job --> EngineEntry

Place in the pipeline: bundle.py calls `build_engines` before a new bundle appears, into_bundle.py for a bundle
that is there already, script.py writes the same jobs into a script.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.config import load_config
from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import EngineEntry, EngineKind, GraphName, Limits, Manifest, ProgramEntry, Role
from lrkit.contract.schemes import scheme_named
from lrkit.errors import ExportError, FileError, MissingExtraError
from lrkit.export.targets.engine_target import EngineTarget
from lrkit.export.tensorrt.device.words import default_archs, known_archs
from lrkit.export.tensorrt.process import build_in_process
from lrkit.families.table import DEFAULT, geometry_of
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.tensorrt.library import PACKAGES, load_library

FOLDER = "engines"
"""Where engines lie in a bundle."""
MOST_RANKED = 3840
"""TensorRT's TopK finds no more. Where their number is fixed, its parser says so; where it is not, nobody does."""

Progress = Callable[[str, int, int], None]
Profile = dict[str, tuple["Shape", "Shape", "Shape"]]
"""Input -> its smallest, usual and largest shape."""
Sizes = tuple[int, int, int]
"""Smallest, usual and largest number."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What to build with; made by `plan_engines`, which has checked it."""

    kind: EngineKind
    archs: tuple[str, ...]
    """Empty: the GPU at hand, or for a script all that its builder knows."""
    options: dict[str, Any]
    usual_prompt_tokens: int | None
    usual_patches: int | None


@dataclass(frozen=True)
class Job:
    """One engine to build."""

    role: Role
    graph: GraphName
    onnx: str
    engine: str
    """File of the engine, relative to the bundle."""
    profile: Profile

    def as_request(self) -> dict[str, Any]:
        """What device/build_engine.py reads."""
        return {"graph": self.graph, "onnx": self.onnx, "engine": self.engine, "profile": self.profile}


def plan_engines(engine: EngineTarget) -> Plan:
    """Checks, in a moment, that the package is here and knows the compute capabilities.

    Raises:
        MissingExtraError: the package is not installed.
        ExportError: a compute capability that its builder does not build for.
    """
    try:
        library = load_library(engine.kind)
    except MissingExtraError as error:
        raise MissingExtraError(
            f"{error}; or write a script for the device that has it: --script build_engine.py"
        ) from error
    known = known_archs(library.module)
    archs = tuple(arch.lower().replace("_", "") for arch in engine.archs)
    if unknown := [arch for arch in archs if arch not in known]:
        raise ExportError(
            f"{PACKAGES[engine.kind]} {library.version} does not build for {', '.join(unknown)}; it knows "
            f"{', '.join(known)}; for other GPUs build on the device itself, with --engine tensorrt"
        )
    return _plan(engine, archs or tuple(default_archs(library.module)))


def plan_script(engine: EngineTarget) -> Plan:
    """The plan of a script: the package is on another machine, and will say itself what it does not know."""
    return _plan(engine, engine.archs)


def _plan(engine: EngineTarget, archs: tuple[str, ...]) -> Plan:
    return Plan(engine.kind, archs, engine.options.given, engine.usual_prompt_tokens, engine.usual_patches)


def check_programs(programs: Mapping[Role, ProgramEntry], archs: tuple[str, ...] = ()) -> None:
    """Whether engines can be built from these programs at all.

    Raises:
        ExportError: a program in another dialect, or int4 for a GPU without it.
    """
    for role, entry in programs.items():
        if entry.dialect != "standard":
            raise ExportError(
                f"the {role} program is in the dialect {entry.dialect}, and engines are built from the dialect "
                "standard; export the checkpoint again with --dialect standard or a target made for it"
            )
        if scheme_named(entry.precision).offsets:
            raise ExportError(
                f"the {role} program has {entry.precision} weights, and TensorRT takes no zero point but 0; export the "
                "checkpoint again with precision=int4, which is symmetric"
            )
        scheme = scheme_named(entry.precision)
        if old := next((arch for arch in archs if int(arch[2:]) < scheme.gpus), None):
            raise ExportError(
                f"the {role} program has {entry.precision} weights, which GPUs multiply by from sm{scheme.gpus} on; "
                f"leave {old} out, or export with precision=int4 or fp16"
            )
        if scheme.bits == 4 and "sm75" in archs:
            raise ExportError(
                f"the {role} program has {entry.precision} weights, which sm75 cannot compute with; leave sm75 out, or "
                "export with precision=fp16"
            )


def plan_jobs(folder: Path, manifest: Manifest, plan: Plan) -> list[Job]:
    """One job per graph of each program, in the order in which they run."""
    usual = _usual_sizes(folder, manifest, plan)
    geometry = geometry_of(manifest.family or DEFAULT).from_folder(folder)
    step = geometry.num_patches(geometry.smallest_grid)
    _check_pruning(manifest, geometry.patches_per_token)
    taken = set(manifest.files)
    jobs: list[Job] = []
    for role, entry in manifest.programs.items():
        sizes = axis_sizes(manifest.limits, step, entry.spec, *usual)
        for graph, file, spec in graphs_of(entry):
            name = free_name(role, graph, plan.kind, plan.archs, taken)
            taken.add(name)
            jobs.append(Job(role, graph, file, name, profile_of(spec, sizes)))
    return jobs


def _check_pruning(manifest: Manifest, patches_per_token: int) -> None:
    """Raises: ExportError: more visual tokens would be ranked than TensorRT can."""
    for role, entry in manifest.programs.items():
        visual = manifest.limits.max_patches // patches_per_token
        kept = -(-visual * entry.settings.prune.share // 1000)
        if entry.settings.prune.active and kept > MOST_RANKED:
            raise ExportError(
                f"the {role} program keeps up to {kept} of {visual} visual tokens by rank (prune.keep), and TensorRT "
                f"ranks {MOST_RANKED}; export again with a smaller limits.max_patches, or keep fewer"
            )


def build_engines(
    folder: Path, manifest: Manifest, plan: Plan, output: Path, progress: Progress
) -> dict[Role, list[EngineEntry]]:
    """Builds the engines of all programs of the bundle in `folder`; the files go to `output`, under the names that
    they will have in the bundle.

    Raises:
        ExportError: the parser or the builder refused, with the place in the program and their own words; or the
            builder's process died.
        FileError: an engine could not be written.
    """
    check_programs(manifest.programs, plan.archs)
    jobs = plan_jobs(folder, manifest, plan)
    made: dict[Role, list[EngineEntry]] = {}
    for number, job in enumerate(jobs):
        what = f"{plan.kind} engine {number + 1} of {len(jobs)} ({job.role} {job.graph})"
        progress(what, 0, 0)
        request = {
            "packages": [PACKAGES[plan.kind]], "archs": plan.archs, "options": plan.options, "folder": str(folder),
            "output": str(output), "jobs": [job.as_request()],
        }  # fmt: skip
        try:
            built = build_in_process(request, lambda sign, what=what: progress(f"{what}: {_life(sign)}", 0, 0))
        except (ExportError, FileError) as error:
            raise type(error)(f"{what} was not built: {error}") from error
        # The kind is the one that was asked for, which a package standing in for another does not know.
        made.setdefault(job.role, []).append(load_config(EngineEntry, {**built, "kind": plan.kind}))
    return made


def parse_program(folder: Path, file: str, plan: Plan) -> None:
    """Lets NVIDIA's parser read one graph, in a process of its own, and builds nothing.

    Raises:
        ExportError: it refuses the graph; the message names the node and its place.
    """
    build_in_process(
        {"packages": [PACKAGES[plan.kind]], "folder": str(folder), "jobs": [{"onnx": file}], "parse_only": True},
        lambda sign: None,
    )


def axis_sizes(limits: Limits, step: int, answer: IoSpec, tokens: int, patches: int) -> dict[str, Sizes]:
    """Sizes of each free axis of a program: P prompt tokens, Q of them behind pruning, L those of an earlier look and
    L+P both, V0 the visual ones of that look, N patches of all pictures (a multiple of `step`, the smallest picture's),
    as many windows as visual tokens, K slots of replay. `answer` is the spec of a whole answer; `tokens` and `patches`
    are to be fastest at."""
    slots = next((spec.shape[1] for spec in answer.outputs if spec.name == "replayed"), 0)
    assert isinstance(slots, int)
    most = max(1, limits.max_patches // step)
    usual = min(max(1, patches // step), most)
    prompt = 1, min(max(1, tokens), limits.max_prompt_tokens), limits.max_prompt_tokens
    return {
        "P": prompt,
        "L": (0, 0, limits.max_prompt_tokens),
        "L+P": prompt,
        "Q": prompt,
        "V0": (0, 0, limits.max_prompt_tokens),
        "N": (step, usual * step, most * step),
        "windows": (1, usual, most),
        "K": (slots, slots, slots),
    }


def profile_of(spec: IoSpec, sizes: Mapping[str, Sizes]) -> Profile:
    """Of each input whose shape varies."""
    return {given.name: _shapes(given.shape, sizes) for given in spec.inputs if _varies(given.shape)}


def _usual_sizes(folder: Path, manifest: Manifest, plan: Plan) -> tuple[int, int]:
    """(prompt tokens, patches) to be fastest at: as asked, else the largest of the recorded samples, else a quarter
    of the limits."""
    tokens, patches = plan.usual_prompt_tokens, plan.usual_patches
    if tokens is None or patches is None:
        seen = [(manifest.limits.max_prompt_tokens // 4, manifest.limits.max_patches // 4)]
        if manifest.samples:
            replay = next(iter(manifest.programs.values())).settings.replay
            processor = Processor.from_folder(folder, manifest.family or DEFAULT).see_for(replay)
            prompts = [
                processor.encode_prompt([folder / name for name in sample.images], sample.question)
                for sample in manifest.samples
            ]
            seen = [(len(p.ids), 0 if p.patches is None else len(p.patches)) for p in prompts]
        tokens = tokens or max(length for length, _ in seen)
        patches = patches or max(count for _, count in seen)
    return tokens, patches


def graphs_of(entry: ProgramEntry) -> Iterator[tuple[GraphName, str, IoSpec]]:
    """(graph, file, its inputs and outputs)."""
    if not entry.steps:
        yield "program", entry.file, entry.spec
    for name, step in entry.steps.items():
        yield name, step.file, step.spec


def free_name(role: Role, graph: GraphName, kind: EngineKind, archs: Sequence[str], taken: set[str]) -> str:
    """A name that no file of the bundle has: an engine is never written over one that is in use."""
    parts = [role, *([] if graph == "program" else [graph]), kind, *(["-".join(archs)] if archs else [])]
    stem = f"{FOLDER}/{'.'.join(parts)}"
    names = (f"{stem}{'' if number == 1 else f'.{number}'}.engine" for number in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def _varies(shape: tuple[int | str, ...]) -> bool:
    return any(isinstance(axis, str) for axis in shape)


def _shapes(shape: tuple[int | str, ...], sizes: Mapping[str, Sizes]) -> tuple[Shape, Shape, Shape]:
    """Smallest, usual and largest shape; an axis may be a sum, as P+K."""

    def size(axis: int | str, which: int) -> int:
        if isinstance(axis, int):
            return axis
        whole, *more = [axis] if axis in sizes else axis.rsplit("+", 1)
        return size(whole, which) + sum(sizes[name][which] for name in more) if more else sizes[whole][which]

    def shapes(which: int) -> Shape:
        return tuple(size(axis, which) for axis in shape)

    return shapes(0), shapes(1), shapes(2)


def _life(sign: dict[str, Any]) -> str:
    """Seconds and memory first: a narrow terminal cuts the end off."""
    held = "" if sign["bytes"] is None else f", {sign['bytes'] / 1e9:.1f} GB"
    phase = f", {sign['phase'].lower()}" if sign["phase"] else ""
    return f"{sign['seconds']:.0f} s{held}{phase}"
