"""The files of a bundle: inside its folder, whole, as listed, and opening nothing that is not listed. Torch-free.

Place in the pipeline: bundle_folder.py asks when it opens a bundle, onnxruntime/engine.py and tensorrt/engine.py again
before a program is loaded.
"""

import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from lrkit.contract.bundle.manifest import BUNDLE_FILE, FileEntry, Manifest
from lrkit.contract.bundle.onnx_walk import mentions
from lrkit.errors import BundleError, clean, os_sentence
from lrkit.files import sha256

AGAIN = "copy the bundle again"
# Files that Processor.from_folder reads where they are there.
_OPTIONAL_FILES = ("tokenizer_config.json",)
_BAD_NAME = re.compile(r'[\\:*?"<>|\x00-\x1f\x7f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows opens them in every folder
_LINKED_PROGRAM = "EPContext"

Seen = Mapping[str, tuple[int, ...]]
"""File -> what tells that it is still the one that was checked."""


def name_problem(name: str) -> str | None:
    """Why a file of that name cannot be part of a bundle on every system; None where it can."""
    place = PurePosixPath(name)
    parts = name.split("/")
    if place.is_absolute() or ".." in parts or "\\" in name or re.match(r"[A-Za-z]:", name):
        return "lies outside the bundle"
    if any(
        part in ("", ".") or part[-1] in ". " or len(part.encode()) > 200 or _BAD_NAME.search(part) for part in parts
    ) or any(_DEVICES.fullmatch(part) for part in parts):
        return "is no name of a file on every system"
    return "names bundle.json itself" if name.casefold() == BUNDLE_FILE else None


def names_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the names of the files that a bundle lists, one sentence each."""
    known: dict[str, str] = {}
    for name in manifest.files:
        if problem := name_problem(name):
            yield f"{BUNDLE_FILE} names the file {clean(ascii(name))[:120]}, which {problem}; do not use this bundle"
            continue
        same = known.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if same != name:
            yield f"{BUNDLE_FILE} names {same} and {name}, which are one file on some systems; do not use this bundle"


def file_problems(folder: Path, manifest: Manifest, verify: bool) -> Iterator[str]:
    """What is wrong with the files that the manifest names, and with what its programs name, one sentence each."""
    damaged = False
    for name, entry in manifest.files.items():
        try:
            problem = _file_problem(folder, name, entry, verify)
        except OSError as error:
            problem = os_sentence(error, name)
        if problem is not None:
            yield problem if problem != _MISSING else f"has no {name}{_renamed(folder, manifest, entry)}; {AGAIN}"
        damaged = damaged or problem is not None
    for name in _OPTIONAL_FILES:
        if name not in manifest.files and (folder / name).exists():
            yield f"has a file {name} that {BUNDLE_FILE} does not list; take it away, or {AGAIN}"
    if not damaged:
        yield from _outside(folder, manifest)


_MISSING = "is missing"


def _file_problem(folder: Path, name: str, entry: FileEntry, verify: bool) -> str | None:
    path = folder / name
    if not path.exists():
        return _MISSING
    if not _within(folder, path):
        return f"{name} is a link that leads out of the bundle; put the file itself there"
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        return f"{name} is no ordinary file; {AGAIN}"
    if found.st_size != entry.bytes:
        what = "is cut off" if found.st_size < entry.bytes else "is too long"
        return f"{name} {what}: it has {found.st_size} bytes where {entry.bytes} belong; {AGAIN}"
    if verify and sha256(path)[0] != entry.sha256:
        return f"{name} was altered: its SHA-256 is not the one in {BUNDLE_FILE}; {AGAIN}"
    return None


def _within(folder: Path, path: Path) -> bool:
    """Whether what is read lies in the folder. The cache of the hub keeps a snapshot's files as links to its blobs."""
    place, home = path.resolve(), folder.resolve()
    in_cache = home.parent.name == "snapshots" and place.parent == home.parent.parent / "blobs"
    return in_cache or place.is_relative_to(home)


def _outside(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Programs that would open what the bundle does not list as theirs."""
    for file, data in _graphs(manifest):
        try:
            named = list(dict.fromkeys(mentions(folder / file)))
        except BundleError as error:
            yield str(error).removeprefix(f"{folder}/")
            continue
        beside = PurePosixPath(file).parent
        for mention in named:
            if mention.what == "operator" and mention.text == _LINKED_PROGRAM:
                yield f"{file} holds a compiled program ({_LINKED_PROGRAM}), as none of lrkit does; do not use it"
            elif mention.what == "location" and (
                data is None or name_problem(mention.text) or str(beside / mention.text) != data
            ):
                yield (
                    f"{file} has weights in {clean(ascii(mention.text))[:120]}, which {BUNDLE_FILE} does not list "
                    "as its data; do not use this bundle"
                )


def _graphs(manifest: Manifest) -> Iterator[tuple[str, str | None]]:
    """Each ONNX file with the file of its weights."""
    for entry in manifest.programs.values():
        yield from ((file, entry.data) for file in dict.fromkeys([entry.file, *(s.file for s in entry.steps.values())]))
    if manifest.front is not None:
        yield manifest.front.file, None


def _renamed(folder: Path, manifest: Manifest, wanted: FileEntry) -> str:
    """Names a stray file with the content of a missing one."""
    for stray in sorted(folder.iterdir()):
        named = stray.name in manifest.files or stray.name == BUNDLE_FILE
        if named or stray.is_symlink() or not stray.is_file() or stray.stat().st_size != wanted.bytes:
            continue
        if sha256(stray)[0] == wanted.sha256:
            return f" ({stray.name} has its content: was it renamed?)"
    return ""


def look(folder: Path, manifest: Manifest) -> Seen:
    """What tells later whether a file is still the one that is there now; files that are missing are left out."""
    return {name: found for name in manifest.files if (found := _signature(folder / name)) is not None}


def require_unchanged(folder: Path, seen: Seen, names: list[str]) -> None:
    """Before a program is loaded, which may be long after its digest was compared.

    Raises:
        BundleError: a file was replaced or written to since.
    """
    for name in names:
        if name in seen and _signature(folder / name) != seen[name]:
            raise BundleError(f"{folder / name}: was altered after the bundle was opened; open it again")


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
