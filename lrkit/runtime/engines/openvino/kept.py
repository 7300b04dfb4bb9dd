"""Keeps compiled programs in a folder, so that the next start need not compile them. Torch-free.

Place in the pipeline: compiled.py asks `Kept` before it compiles, and gives it what it compiled.

Nothing is kept unless a folder is asked for: a compiled program is more than twice as large as the int4 program that
it comes from. OpenVINO takes such a file as it is, and numbers that changed in it would be another model. So lrkit
keeps the files itself (not by OpenVINO's CACHE_DIR): under a name that tells the content of the program, the device,
the properties and the versions; with the SHA-256 of their own content in front, without which none is opened; and only
where no other user can write.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lrkit.errors import FileError, UserError, os_sentence
from lrkit.files import replacing, sha256
from lrkit.provenance import installed_version
from lrkit.runtime.engines.openvino.library import capabilities, core, full_name, load_library

MOST_BYTES = 8 << 30
"""Of all files in a folder; those that were used least recently go."""
SUFFIX = ".ovblob"
_MAGIC = b"lrkitov1"
"""Its number counts up where brake.py changes programs otherwise."""
_HEAD = len(_MAGIC) + hashlib.sha256().digest_size


def usual_folder() -> Path:
    """lrkit's own in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "lrkit" / "openvino"


def ready(cache: bool | Path | None) -> Path | None:
    """The folder that was asked for, made if it is not there; True is the usual one, None and False are none.

    Raises:
        UserError: it is no folder, cannot be made, or others than the user may write to it.
    """
    if cache is None or cache is False:
        return None
    folder = usual_folder() if cache is True else cache
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        safe = _private(folder.stat())
    except FileExistsError as error:
        raise UserError(f"{folder}: is no folder; give the option cache one, or leave it out") from error
    except (OSError, ValueError) as error:
        raise FileError(os_sentence(error, folder)) from error
    if not safe:
        raise UserError(
            f"{folder}: other users may write there, and what was compiled is run as it is; give the option cache a "
            "folder of your own, or leave it out"
        )
    return folder


class Kept:
    """What was compiled of one program in one way."""

    def __init__(self, folder: Path, files: Sequence[Path], device: str, properties: Mapping[str, Any]) -> None:
        """`folder` as `ready` gave it; `files`: the program, and what it reads its weights from."""
        self._folder, self._device, self._properties = folder, device, dict(properties)
        told = [
            _MAGIC.decode(), installed_version("lrkit"), load_library().get_version(),
            device, full_name(device), capabilities(device),
            sorted((key, str(value)) for key, value in properties.items()),
            [sha256(file)[0] for file in files],
        ]  # fmt: skip
        self.file = folder / (hashlib.sha256(json.dumps(told).encode()).hexdigest() + SUFFIX)

    def load(self) -> Any | None:
        """None where nothing is kept, or it is damaged: then it is removed."""
        found = _read(self.file)
        if found is None:
            return None
        try:
            compiled = core().import_model(found, self._device, self._properties)
        except RuntimeError:  # OpenVINO's own class
            with suppress(OSError):
                self.file.unlink()
            return None
        with suppress(OSError):  # a folder that can be read alone
            os.utime(self.file)
        return compiled

    def save(self, compiled: Any) -> None:
        """Keeps it where that is possible; no answer depends on it."""
        if "EXPORT_IMPORT" not in capabilities(self._device):
            return
        with suppress(RuntimeError, OSError, FileError):
            content = memoryview(compiled.export_model().getbuffer())
            if len(content) + _HEAD > MOST_BYTES:
                return
            with replacing(self.file) as part, part.open("wb") as stream:
                stream.write(_MAGIC + hashlib.sha256(content).digest())
                stream.write(content)
            _make_room(self._folder)


def _read(file: Path) -> bytes | None:
    """The content of a file that is whole and the user's own."""
    try:
        with file.open("rb") as stream:
            if not _private(os.fstat(stream.fileno())):
                return None
            head, content = stream.read(_HEAD), stream.read()
    except OSError:
        return None
    if head == _MAGIC + hashlib.sha256(content).digest():
        return content
    with suppress(OSError):
        file.unlink()
    return None


def _private(found: os.stat_result) -> bool:
    """Whether it belongs to this user, or the system's, and not everybody may write to it."""
    if not hasattr(os, "geteuid"):  # Windows has rights of another kind
        return True
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & stat.S_IWOTH


def _make_room(folder: Path) -> None:
    """Removes what was used least recently until `MOST_BYTES` hold the rest."""
    found = [(file, file.stat()) for file in folder.glob(f"*{SUFFIX}")]
    total = sum(facts.st_size for _, facts in found)
    for file, facts in sorted(found, key=lambda one: one[1].st_mtime):
        if total <= MOST_BYTES:
            return
        file.unlink(missing_ok=True)
        total -= facts.st_size
