"""Puts TensorRT engines into a bundle that is there already, and keeps it whole at every moment. Torch-free.

    build into a hidden neighbour --> move in under names that nothing uses --> replace bundle.json --> drop the old

Place in the pipeline: `lrkit export BUNDLE --engine KIND` -> `add_engines`; `--engine-file FILE` -> `take_engines`,
for what the script of tensorrt_script.py built elsewhere. Only the replacement of bundle.json, which is atomic, changes
what the bundle is: killed before it, the bundle is the old one beside files that nothing names; after it, the new one.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from lrkit.config import Config, load_config
from lrkit.errors import ConfigError, ExportError
from lrkit.export.target import EngineTarget
from lrkit.export.tensorrt import FOLDER, Progress, build_engines, check_programs, free_name, plan_engines
from lrkit.runtime.bundle import Bundle, open_bundle
from lrkit.runtime.manifest import BUNDLE_FILE, SCHEMA, EngineEntry, Manifest, Role, digest

Engines = Mapping[Role, Sequence[EngineEntry]]


class TakenEngine(Config):
    """One engine of an engines.json."""

    role: Role
    """Program it was built from."""
    onnx_sha256: str
    """Digest of the ONNX file it was built from."""
    entry: EngineEntry
    """As a bundle records it."""


def add_engines(
    bundle: Path | str, engine: EngineTarget, progress: Progress = lambda what, done, total: None
) -> Manifest:
    """Builds engines from the programs of a bundle and records them in it; one of the same kind, version, graph and
    compute capabilities is replaced.

    Raises:
        BundleError: no bundle, or a damaged one.
        MissingExtraError: the package that builds is not installed.
        ExportError: the programs are of another dialect, or the builder refuses; the bundle stays as it was.
    """
    plan = plan_engines(engine)
    progress("checking the bundle", 0, 0)
    opened = open_bundle(bundle)
    check_programs(opened.manifest, plan.archs)
    staging = _staging(opened.folder)
    try:
        staging.mkdir()
        built = build_engines(opened.folder, opened.manifest, plan, staging, progress)
        return _put_in(opened, built, staging)
    finally:  # Ctrl-C too
        shutil.rmtree(staging, ignore_errors=True)


def take_engines(bundle: Path | str, engines_file: Path) -> Manifest:
    """Takes engines that `build_engine.py` built on a device into the bundle, with its engines.json.

    Raises:
        BundleError: no bundle, or a damaged one.
        ExportError: no such file, a file of another kind, or engines of other programs.
    """
    opened = open_bundle(bundle)
    given, taken = _read_engines(engines_file), set(opened.manifest.files)
    staging = _staging(opened.folder)
    engines: dict[Role, list[EngineEntry]] = {}
    try:
        for found in given:
            _check_origin(opened, found, engines_file)
            source = engines_file.parent / Path(found.entry.file).name
            if not source.is_file():
                raise ExportError(f"{engines_file} names {source.name}, which is not beside it; copy both")
            name = free_name(found.role, found.entry.graph, found.entry.kind, found.entry.archs, taken)
            taken.add(name)
            (staging / FOLDER).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, staging / name)
            engines.setdefault(found.role, []).append(found.entry.model_copy(update={"file": name}))
        return _put_in(opened, engines, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def with_engines(manifest: Manifest, folder: Path, engines: Engines) -> Manifest:
    """The manifest with these engines, whose files lie in `folder`; those that they replace are left out."""
    programs, files = dict(manifest.programs), dict(manifest.files)
    for role, new in engines.items():
        keys = {_key(entry) for entry in new}
        kept: list[EngineEntry] = []
        for old in programs[role].engines:
            if _key(old) in keys:
                del files[old.file]
            else:
                kept.append(old)
        programs[role] = programs[role].model_copy(update={"engines": (*kept, *new)})
        files |= {entry.file: digest(folder / entry.file) for entry in new}
    return manifest.model_copy(update={"schema_version": SCHEMA, "programs": programs, "files": files})


def _key(entry: EngineEntry) -> tuple[str, ...]:
    return entry.kind, entry.version, entry.graph, *entry.archs


def _staging(folder: Path) -> Path:
    """An absent neighbour, on the same disk; what a killed build left there is dropped."""
    folder = folder.resolve()
    staging = folder.parent / f".{folder.name}.engines"
    shutil.rmtree(staging, ignore_errors=True)
    return staging


def _put_in(bundle: Bundle, engines: Engines, staging: Path) -> Manifest:
    """Moves the files in and switches to the new manifest."""
    manifest = with_engines(bundle.manifest, staging, engines)
    new = [entry.file for entries in engines.values() for entry in entries]
    (bundle.folder / FOLDER).mkdir(exist_ok=True)
    try:
        for name in new:
            os.replace(staging / name, bundle.folder / name)
        written = staging / BUNDLE_FILE
        written.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(written, bundle.folder / BUNDLE_FILE)
    finally:
        # Stopped before the switch, the new files go; after it, the old ones: what bundle.json names decides.
        named = json.loads((bundle.folder / BUNDLE_FILE).read_text(encoding="utf-8"))["files"]
        for name in {*new, *bundle.manifest.files} - set(named):
            (bundle.folder / name).unlink(missing_ok=True)
    return manifest


def _read_engines(file: Path) -> list[TakenEngine]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{file}: no such file; give the engines.json that the build script wrote") from None
    except ValueError as error:
        raise ExportError(f"{file}: is no valid JSON ({error}); copy it again") from error
    if not isinstance(content, dict) or content.get("kind") != "engines" or not content.get("engines"):
        raise ExportError(f"{file}: lists no engines; give the engines.json that the build script wrote")
    try:
        return [load_config(TakenEngine, found) for found in content["engines"]]
    except ConfigError as error:
        raise ExportError(f"{file}: is damaged ({str(error).splitlines()[0]}); build the engines again") from error


def _check_origin(bundle: Bundle, found: TakenEngine, file: Path) -> None:
    """An engine answers for its bundle only if it was built from the same program."""
    entry = bundle.manifest.programs.get(found.role)
    names = [] if entry is None else [entry.file, *(step.file for step in entry.steps.values())]
    if found.onnx_sha256 not in [bundle.manifest.files[name].sha256 for name in names]:
        raise ExportError(
            f"{file}: its {found.role} engine was built from another program than that of {bundle.folder}; build it "
            "again with a script written for this bundle"
        )
