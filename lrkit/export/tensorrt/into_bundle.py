"""Puts TensorRT engines into a bundle that is there already, and keeps it whole at every moment. Torch-free.

    build into a folder inside --> list what will move --> move it under names that nothing uses --> replace bundle.json
        --> drop the old

Place in the pipeline: `lrkit engines BUNDLE` -> `add_engines`; `--take FILE` -> `take_engines`, for what the script of
script.py built elsewhere. Only the replacement of bundle.json changes what the bundle is, and that is atomic. Killed
before it, the process leaves the old bundle beside files that nothing names; killed after it, the new bundle. The list
of what moves stays in the killed process's folder, so the next one removes the rest.
"""

import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lrkit.config import Config, load_config
from lrkit.contract.bundle.bundle_folder import Bundle, open_bundle
from lrkit.contract.bundle.manifest import BUNDLE_FILE, SCHEMA, EngineEntry, Manifest, Role, digest
from lrkit.errors import BundleError, ConfigError, ExportError, FileError, is_write_failure, one_line, os_sentence
from lrkit.export.targets.engine_target import EngineTarget
from lrkit.export.tensorrt.jobs import FOLDER, Progress, build_engines, check_programs, free_name, plan_engines
from lrkit.files import read_json, remove, sync, write_json, write_text
from lrkit.folders import locked

STAGING = ".engines.writing"
"""Folder in a bundle where engines are built before they join it: on its own disk, also where that is a mounted one."""
MOVING_FILE = "moving.json"
"""In that folder, the names that come or go once files begin to move."""

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
        FileError: an engine cannot be written; the bundle stays as it was.
        UserError: another process writes into the bundle.
    """
    plan = plan_engines(engine)
    progress("checking the bundle", 0, 0)
    with _opened_to_write(bundle) as (opened, staging):
        check_programs(opened.manifest.programs, plan.archs)
        try:
            built = build_engines(opened.folder, opened.manifest, plan, staging, progress)
        except (ExportError, FileError) as error:
            raise type(error)(f"{error}; {bundle} stays as it was") from error
        return _put_in(opened, built, staging)


def take_engines(bundle: Path | str, engines_file: Path) -> Manifest:
    """Takes engines that `build_engine.py` built on a device into the bundle, with its engines.json.

    Raises:
        BundleError: no bundle, or a damaged one.
        ExportError: no such file, a file of another kind, or engines of other programs.
        FileError: an engine cannot be written; the bundle stays as it was.
        UserError: another process writes into the bundle.
    """
    given = _read_engines(engines_file)
    engines: dict[Role, list[EngineEntry]] = {}
    with _opened_to_write(bundle) as (opened, staging):
        taken = set(opened.manifest.files)
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


@contextmanager
def _opened_to_write(bundle: Path | str) -> Generator[tuple[Bundle, Path]]:
    """(the bundle, an empty folder in it to write into), while nobody else may write into the bundle; the folder is
    removed at the end, and so is what a killed process left.

    Raises:
        BundleError: no bundle, or a damaged one.
        UserError: another process writes into it.
        FileError: the folder cannot be written.
    """
    folder = open_bundle(bundle, verify=False).folder
    with locked(folder, "writes into"):
        opened = open_bundle(bundle)  # as it is now that it can be relied on
        staging = folder / STAGING
        try:
            _clear(opened)
            staging.mkdir()
            yield opened, staging
        except Exception as error:
            if not is_write_failure(error):
                raise
            raise FileError(f"{os_sentence(error, folder)}; {bundle} stays as it was") from error
        finally:  # Ctrl-C too
            remove(staging)


def _clear(bundle: Bundle) -> None:
    """Takes away what a killed process left: its folder, and files that it moved and bundle.json does not name."""
    staging = bundle.folder / STAGING
    moved = read_json(staging / MOVING_FILE, BundleError, missing_ok=True).get("names", [])
    lost = {name for name in moved if isinstance(name, str)} if isinstance(moved, list) else set[str]()
    _drop(bundle.folder, lost, set(bundle.manifest.files))
    remove(staging)


def _drop(folder: Path, names: set[str], kept: set[str]) -> None:
    """Removes engines by their names in the bundle, but for those kept."""
    for name in names - kept:
        if Path(name).parent == Path(FOLDER) and Path(name).name not in ("", ".", ".."):
            (folder / name).unlink(missing_ok=True)


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


def _put_in(bundle: Bundle, engines: Engines, staging: Path) -> Manifest:
    """Moves the files in and switches to the new manifest."""
    manifest = with_engines(bundle.manifest, staging, engines)
    new = [entry.file for entries in engines.values() for entry in entries]
    changed = {*new, *(set(bundle.manifest.files) - set(manifest.files))}
    for name in new:
        sync(staging / name)
    write_json(staging / MOVING_FILE, {"names": sorted(changed)})
    (bundle.folder / FOLDER).mkdir(exist_ok=True)
    try:
        for name in new:
            os.replace(staging / name, bundle.folder / name)
        sync(bundle.folder / FOLDER)
        write_text(bundle.folder / BUNDLE_FILE, manifest.model_dump_json(indent=2) + "\n")
    finally:
        # Stopped before the switch, the new files go; after it, the old ones: what bundle.json names decides.
        named = read_json(bundle.folder / BUNDLE_FILE, BundleError).get("files", {})
        _drop(bundle.folder, changed, set(named))
    return manifest


def _read_engines(file: Path) -> list[TakenEngine]:
    if not os.path.lexists(file):
        raise ExportError(f"{file}: no such file; give the engines.json that the build script wrote")
    content = read_json(file, ExportError)
    found = content.get("engines")
    if content.get("kind") != "engines" or not isinstance(found, list) or not found:
        raise ExportError(f"{file}: lists no engines; give the engines.json that the build script wrote")
    if not all(isinstance(one, dict) for one in found):
        raise ExportError(f"{file}: is damaged (an engine that is no mapping); build the engines again")
    try:
        return [load_config(TakenEngine, one) for one in found]
    except ConfigError as error:
        raise ExportError(f"{file}: is damaged ({one_line(error)}); build the engines again") from error


def _check_origin(bundle: Bundle, found: TakenEngine, file: Path) -> None:
    """An engine answers for its bundle only if it was built from the same program."""
    entry = bundle.manifest.programs.get(found.role)
    names = [] if entry is None else [entry.file, *(step.file for step in entry.steps.values())]
    if found.onnx_sha256 not in [bundle.manifest.files[name].sha256 for name in names]:
        raise ExportError(
            f"{file}: its {found.role} engine was built from another program than that of {bundle.folder}; build it "
            "again with a script written for this bundle"
        )
