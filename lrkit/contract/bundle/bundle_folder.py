"""Opens a bundle that is whole, unaltered and of a schema that this lrkit reads. Torch-free.

Place in the pipeline: bundle folder -> `open_bundle` -> engines/table.py -> onnxruntime/engine.py or
tensorrt/engine.py. What bundle.json holds: manifest.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lrkit.config import load_config
from lrkit.contract.bundle.bundle_files import AGAIN, Seen, file_problems, look, names_problems, require_unchanged
from lrkit.contract.bundle.declared import spec_problems
from lrkit.contract.bundle.manifest import BUNDLE_FILE, SCHEMA, Manifest, ProgramEntry, Role
from lrkit.contract.schemes import SCHEMES
from lrkit.errors import BundleError, ConfigError, did_you_mean, one_line
from lrkit.files import read_json, write_text

MAX_MANIFEST_BYTES = 8 << 20
"""Largest bundle.json that is read."""
MAX_PROBLEMS = 20
"""Of what is wrong, the lines that are told."""
# Files that Processor.from_folder reads; the program's own are named by the manifest.
_PROCESSOR_FILES = ("tokenizer.json", "preprocessor_config.json", "prompt.json")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read."""

    folder: Path
    manifest: Manifest
    seen: Seen = field(default_factory=dict[str, tuple[int, ...]], repr=False, compare=False)
    """State of the files when it was opened: see `require_unchanged`."""

    def program(self, role: Role) -> ProgramEntry:
        """The program of that role.

        Raises:
            BundleError: the bundle has none.
        """
        entry = self.manifest.programs.get(role)
        if entry is None:
            known = ", ".join(self.manifest.programs)
            raise BundleError(f"{self.folder}: has no {role} program, only {known}; export again with it")
        return entry

    @property
    def num_bytes(self) -> int:
        """Size of all files but bundle.json."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    def check_unchanged(self, *names: str | None) -> None:
        """Checks files before they are loaded.

        Raises:
            BundleError: one was altered after the bundle was opened.
        """
        require_unchanged(self.folder, self.seen, [name for name in names if name is not None])


def is_bundle(path: Path | str) -> bool:
    """Whether the folder is one, or at least was: it holds a bundle.json, or programs without one."""
    folder = Path(path)
    return (folder / BUNDLE_FILE).is_file() or (folder.is_dir() and any(folder.glob("*.onnx")))


def made_for(path: Path | str) -> str | None:
    """The engine that a bundle says it is meant for; None where it says nothing, or cannot be read: what is wrong is
    told when it is opened."""
    try:
        values = read_json(Path(path) / BUNDLE_FILE, BundleError, MAX_MANIFEST_BYTES)
    except BundleError:
        return None
    told = values.get("made_for")
    name = told.get("engine") if isinstance(told, dict) else None
    return name if isinstance(name, str) else None


def open_bundle(path: Path | str, verify: bool = True) -> Bundle:
    """The bundle in a folder. `verify` reads every file and compares SHA-256; without it only names and sizes count.

    Raises:
        BundleError: no bundle, one that is damaged or incomplete (one line per fault), or one of a later schema.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    # A manifest that contradicts itself is not used to look at files.
    problems = list(_contradictions(manifest))
    seen = {} if problems else look(folder, manifest)
    if problems := problems or list(file_problems(folder, manifest, verify)):
        hidden = len(problems) - MAX_PROBLEMS
        more = [f"and {hidden} more problems"] if hidden > 0 else []
        raise BundleError("\n".join(f"{folder}: {problem}" for problem in [*problems[:MAX_PROBLEMS], *more]))
    return Bundle(folder, manifest, seen)


def write_manifest(bundle: Bundle, manifest: Manifest) -> Bundle:
    """Replaces bundle.json, at once; the files it names must be there already.

    Raises:
        FileError: it cannot be written; the older one is as it was.
    """
    write_text(bundle.folder / BUNDLE_FILE, manifest.model_dump_json(indent=2) + "\n")
    return Bundle(bundle.folder, manifest, bundle.seen)


def _read_manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise BundleError(f"{folder}: {what}; give a bundle, a folder that `lrkit export` wrote")
    path = folder / BUNDLE_FILE
    if not path.is_file():
        raise BundleError(f"{folder}: is no bundle (no {BUNDLE_FILE}); give a folder that `lrkit export` wrote")
    values = read_json(path, BundleError, MAX_MANIFEST_BYTES)
    schema = values.get("schema_version")
    if type(schema) is int and schema > SCHEMA:
        raise BundleError(f"{path}: has schema {schema}, this lrkit reads {SCHEMA}; update lrkit")
    if type(schema) is int and schema < SCHEMA:
        raise BundleError(f"{path}: has schema {schema}, this lrkit reads {SCHEMA}; export the checkpoint again")
    try:
        return load_config(Manifest, values)
    except ConfigError as error:
        first, *more = clean_lines(error)
        others = f" and {len(more)} more" if more else ""
        raise BundleError(f"{path}: is damaged ({first}{others}); {AGAIN}") from error


def clean_lines(error: ConfigError) -> list[str]:
    """What is wrong, one clean line each."""
    return [one_line(line) for line in str(error).splitlines()]


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Names that the manifest uses and does not list, or that lead out of the folder."""
    yield from names_problems(manifest)
    if not manifest.programs:
        yield f"{BUNDLE_FILE} names no program; export the checkpoint again"
    for role, entry in manifest.programs.items():
        if (entry.spec.form == "step") != bool(entry.steps):
            given = f"the form {entry.spec.form} and {len(entry.steps)} steps"
            yield f"{BUNDLE_FILE} gives the {role} program {given}; {AGAIN}"
        if entry.precision not in SCHEMES:
            yield (
                f"{BUNDLE_FILE} says that the {role} program holds its weights as {one_line(ascii(entry.precision))}, "
                f"where this lrkit knows {', '.join(SCHEMES)}{did_you_mean(entry.precision, SCHEMES)}; update lrkit, "
                "or export the checkpoint again"
            )
    for user, name in dict.fromkeys(_used(manifest)):
        if name not in manifest.files:
            yield f"{BUNDLE_FILE} has no entry for {one_line(name)}, which {user} needs; {AGAIN}"
    yield from (f"{one_line(problem)}; {AGAIN}" for problem in spec_problems(manifest))


def _used(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(who needs it, file)."""
    yield from (("the prompt", name) for name in _PROCESSOR_FILES)
    for role, entry in manifest.programs.items():
        yield f"the {role} program", entry.file
        if entry.data is not None:
            yield f"the {role} program", entry.data
        yield from ((f"the {role} program", step.file) for step in entry.steps.values())
        yield from ((f"the {role} program", engine.file) for engine in entry.engines)
        yield from ((f"the adapter {name}", adapter.file) for name, adapter in entry.adapters.items())
    if manifest.front is not None:
        yield "a host in another language", manifest.front.file
    for sample in manifest.samples:
        yield from (("a recorded sample", image) for image in sample.images)
