"""Opens a bundle: is it whole, unaltered and of a schema this lrkit reads? Torch-free.

Place in the pipeline: bundle folder -> `open_bundle` -> engines.py -> ort.py or tensorrt.py. What bundle.json holds:
manifest.py.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lrkit.config import load_config
from lrkit.errors import BundleError, ConfigError
from lrkit.runtime.manifest import BUNDLE_FILE, SCHEMA, FileEntry, Manifest, ProgramEntry, Role, digest

_AGAIN = "copy the bundle again"
# Files that Processor.from_folder reads; the program's own are named by the manifest.
_PROCESSOR_FILES = ("tokenizer.json", "preprocessor_config.json", "prompt.json")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read."""

    folder: Path
    manifest: Manifest

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

    def program_path(self, role: Role) -> Path:
        """The ONNX file of that role."""
        return self.folder / self.program(role).file

    @property
    def num_bytes(self) -> int:
        """Size of all files but bundle.json."""
        return sum(entry.bytes for entry in self.manifest.files.values())


def is_bundle(path: Path | str) -> bool:
    """Whether the folder is one, or at least was: it holds a bundle.json, or programs without one."""
    folder = Path(path)
    return (folder / BUNDLE_FILE).is_file() or (folder.is_dir() and any(folder.glob("*.onnx")))


def open_bundle(path: Path | str, verify: bool = True) -> Bundle:
    """The bundle in a folder. `verify` reads every file and compares SHA-256; without it only names and sizes count.

    Raises:
        BundleError: no bundle, one that is damaged or incomplete (one line per fault), or one of a later schema.
    """
    folder = Path(path)
    bundle = Bundle(folder, _read_manifest(folder))
    # A manifest that contradicts itself is not used to look at files.
    if problems := list(_contradictions(bundle.manifest)) or list(file_problems(bundle, verify)):
        raise BundleError("\n".join(f"{folder}: {problem}" for problem in problems))
    return bundle


def write_manifest(bundle: Bundle, manifest: Manifest) -> Bundle:
    """Replaces bundle.json, at once; the files it names must be there already.

    Raises:
        BundleError: it cannot be written.
    """
    staging = bundle.folder / f".{BUNDLE_FILE}.writing"
    try:
        staging.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        staging.replace(bundle.folder / BUNDLE_FILE)
    except OSError as error:
        staging.unlink(missing_ok=True)
        message = f"{bundle.folder}: {BUNDLE_FILE} cannot be written ({error.strerror}); check its permissions"
        raise BundleError(message) from error
    return Bundle(bundle.folder, manifest)


def file_problems(bundle: Bundle, verify: bool = True) -> Iterator[str]:
    """What is wrong with the files that the manifest names, one sentence each."""
    for name, entry in bundle.manifest.files.items():
        path = bundle.folder / name
        if not path.is_file():
            yield f"has no {name}{_renamed(bundle, entry)}; {_AGAIN}"
        elif (size := path.stat().st_size) != entry.bytes:
            what = "is cut off" if size < entry.bytes else "is too long"
            yield f"{name} {what}: it has {size} bytes where {entry.bytes} belong; {_AGAIN}"
        elif verify and digest(path).sha256 != entry.sha256:
            yield f"{name} was altered: its SHA-256 is not the one in {BUNDLE_FILE}; {_AGAIN}"


def _read_manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise BundleError(f"{folder}: {what}; give a bundle, a folder that `lrkit export` wrote")
    path = folder / BUNDLE_FILE
    if not path.is_file():
        raise BundleError(f"{folder}: is no bundle (no {BUNDLE_FILE}); give a folder that `lrkit export` wrote")
    values = _read_mapping(path)
    schema = values.get("schema_version")
    if isinstance(schema, int) and schema > SCHEMA:
        raise BundleError(f"{path}: has schema {schema}, this lrkit reads {SCHEMA}; update lrkit")
    if isinstance(schema, int) and schema < SCHEMA:
        raise BundleError(f"{path}: has schema {schema}, this lrkit reads {SCHEMA}; export the checkpoint again")
    try:
        return load_config(Manifest, values)
    except ConfigError as error:
        first, *more = str(error).splitlines()
        others = f" and {len(more)} more" if more else ""
        raise BundleError(f"{path}: is damaged ({first}{others}); {_AGAIN}") from error


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise BundleError(f"{path}: is no valid JSON ({error}); {_AGAIN}") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path}: holds a {type(values).__name__} where a mapping belongs; {_AGAIN}")
    return values


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Names that the manifest uses and does not list, or that lead out of the folder."""
    for name in manifest.files:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name:
            yield f"{BUNDLE_FILE} names the file {name!r}, which lies outside the bundle; do not use this bundle"
    if not manifest.programs:
        yield f"{BUNDLE_FILE} names no program; export the checkpoint again"
    for role, entry in manifest.programs.items():
        if (entry.spec.form == "step") != bool(entry.steps):
            given = f"the form {entry.spec.form} and {len(entry.steps)} steps"
            yield f"{BUNDLE_FILE} gives the {role} program {given}; {_AGAIN}"
    for user, name in dict.fromkeys(_used(manifest)):
        if name not in manifest.files:
            yield f"{BUNDLE_FILE} has no entry for {name}, which {user} needs; {_AGAIN}"


def _used(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(who needs it, file)."""
    yield from (("the prompt", name) for name in _PROCESSOR_FILES)
    for role, entry in manifest.programs.items():
        yield f"the {role} program", entry.file
        if entry.data is not None:
            yield f"the {role} program", entry.data
        yield from ((f"the {role} program", step.file) for step in entry.steps.values())
        yield from ((f"the {role} program", engine.file) for engine in entry.engines)
    for sample in manifest.samples:
        yield from (("a recorded sample", image) for image in sample.images)


def _renamed(bundle: Bundle, wanted: FileEntry) -> str:
    """Names a stray file with the content of a missing one."""
    for stray in sorted(bundle.folder.iterdir()):
        named = stray.name in bundle.manifest.files or stray.name == BUNDLE_FILE
        if not named and stray.is_file() and stray.stat().st_size == wanted.bytes and digest(stray) == wanted:
            return f" ({stray.name} has its content: was it renamed?)"
    return ""
