"""Files written whole or not at all, JSON read strictly, digests. Every file that lrkit writes for a user goes through
here; folders are in lrkit/folders.py.

An ordinary file is replaced at once: the new content goes into a neighbour `.writing-PID-N-NAME`, which then takes the
name. So a full disk, a killed process or two writers never leave half a file, and the old one stays until the new one
stands. A link is followed. A device, a pipe or an open descriptor (`/dev/stdout`) is written through.
"""

import hashlib
import itertools
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from errno import EACCES, EBUSY, ENOTDIR, EPERM, EROFS, EXDEV
from pathlib import Path
from typing import Any, BinaryIO

from lrkit.errors import FileError, LrkitError, UserError, is_write_failure, one_line, os_sentence

MAX_JSON_BYTES = 64 << 20
"""Largest JSON file that is read."""
MAX_JSON_DEPTH = 64
"""Deepest nesting of lists and mappings in it."""
MAX_DIGITS = 40
"""Most digits of a whole number in it."""

WRITING = ".writing-"
"""How the name of a file or folder begins that is not complete yet."""

_DESCRIPTOR = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")
# Where no neighbour can be made (a single file mounted into a container, a folder without rights) the file itself may
# still be writable.
_NO_NEIGHBOUR = {EACCES, EBUSY, EPERM, EROFS, EXDEV}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_counter = itertools.count()


def write_text(path: Path | str, text: str) -> None:
    """Writes a file in UTF-8. Raises as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, values: Any, indent: int | None = 2, **dumps: Any) -> None:
    """Writes values as JSON with a newline at the end; further arguments are those of `json.dumps`.

    Raises:
        FileError: as `write_bytes`.
    """
    write_text(path, json.dumps(values, indent=indent, **dumps) + "\n")


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes a file: all of it or nothing.

    Raises:
        FileError: it cannot be written; the older file is as it was.
    """
    with replacing(path) as place:
        place.write_bytes(data)


@contextmanager
def replacing(path: Path | str) -> Generator[Path]:
    """Gives the path to write to; what lies there at the end takes the place of `path`. It keeps the file's ending.

    Raises:
        FileError: it cannot be written (an OSError, or what torch and safetensors raise for one); the older file is as
            it was, and nothing is left over.
    """
    given = Path(path)
    try:
        descriptor, target = _destination(given)
        target.parent.mkdir(parents=True, exist_ok=True)
        apart = descriptor is not None or _special(target)
        staging, apart = _staging_file(target, apart)
    except (OSError, ValueError) as error:
        raise FileError(os_sentence(error, given)) from error
    try:
        yield staging
        if apart:
            _copy_through(staging, target, descriptor)
        else:
            _take_the_place(staging, target)
    except Exception as error:
        if isinstance(error, LrkitError) or not is_write_failure(error):
            raise
        raise FileError(os_sentence(error, given)) from error
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)


def check_writable(path: Path | str, folder: bool = False) -> None:
    """Looks, before long work, whether its result could be written to `path`: a file, or a folder of files.

    Raises:
        FileError: it could not: a folder where a file belongs or the other way, a file among the parents, no rights.
    """
    given = Path(path)
    try:
        if "\0" in str(given):
            raise ValueError("the name holds a NUL")
        descriptor, target = _destination(given)
        if descriptor is not None:
            os.fstat(descriptor)
            return
        if not folder and target.exists():
            _special(target)
            return
        there = next(place for place in (target, *target.absolute().parents) if os.path.lexists(place))
        if not there.is_dir():
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), str(there))
        if not os.access(there, os.W_OK | os.X_OK):
            read_only = hasattr(os, "statvfs") and os.statvfs(there).f_flag & os.ST_RDONLY
            number = EROFS if read_only else EACCES
            raise OSError(number, os.strerror(number), str(there))
        given.stat()  # a name that is too long, which lexists does not tell from one that is free
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise FileError(os_sentence(error, given)) from error


def sync(path: Path) -> None:
    """Asks the system to bring a file or folder onto the disk now; where it cannot, nothing happens."""
    with suppress(OSError):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def staging_path(target: Path) -> Path:
    """A name beside `target` that nobody else uses; what killed processes left under such names is removed."""
    name = target.name
    while len(os.fsencode(name)) > 180:  # names have 255 bytes
        name = name[1:]
    for left in target.parent.glob(f"{WRITING}*-{glob_escape(name)}"):
        owner = left.name.removeprefix(WRITING).partition("-")[0]
        if owner.isdecimal() and int(owner) != os.getpid() and not _alive(int(owner)):
            remove(left)
    return target.with_name(f"{WRITING}{os.getpid()}-{next(_counter)}-{name}")


def glob_escape(name: str) -> str:
    """A name as a pattern that matches itself alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def remove(path: Path) -> None:
    """Takes a file or a whole folder away; what is not there, or cannot be removed, is passed over."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


class NotOrdinaryError(OSError):
    """There is something else than a file at a path; its text is what: "a folder", "a pipe"."""


def open_ordinary(path: "os.PathLike[str] | str") -> BinaryIO:
    """Opens an ordinary file to read its bytes. Unlike `open`, it never waits for whoever writes into a pipe.

    Raises:
        NotOrdinaryError: it is a folder, a pipe, a socket or a device.
        OSError, ValueError: it cannot be opened, or its name holds NUL or half a surrogate pair.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise NotOrdinaryError(kind_of_file(mode))
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def kind_of_file(mode: int) -> str:
    """What a file's mode says it is, in words."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "no ordinary file")


def sha256(path: Path) -> tuple[str, int]:
    """Digest of a file's content in lower-case hex, and its bytes; read in pieces."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def read_json(
    path: Path, error: type[UserError] = UserError, max_bytes: int = MAX_JSON_BYTES, missing_ok: bool = False
) -> dict[str, Any]:
    """The mapping in a JSON file; empty where the file is missing and may be.

    Raises:
        UserError: of the class `error`, in one sentence; see `read_text` and `parse_json`.
    """
    if missing_ok and not os.path.lexists(path):
        return {}
    return parse_json(read_text(path, error, max_bytes), str(path), error)


def read_text(path: Path, error: type[UserError] = UserError, max_bytes: int = MAX_JSON_BYTES) -> str:
    """The text of an ordinary file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: of the class `error`: it cannot be read, is no ordinary file, is too large or not UTF-8.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would wait for a writer
            raise error(f"{path}: is no ordinary file; give the path of one")
        if found.st_size > max_bytes:
            raise error(f"{path}: has {found.st_size} bytes where at most {max_bytes} are read; give a smaller file")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path}: is not UTF-8 text (byte {reason.start}); save it as UTF-8") from reason
    except (OSError, ValueError) as reason:
        if isinstance(reason, LrkitError):
            raise
        raise error(os_sentence(reason, path)) from reason


def parse_json(text: str, label: str, error: type[UserError] = UserError) -> dict[str, Any]:
    """The mapping in JSON text. `label` names its place in messages.

    Raises:
        UserError: of the class `error`: not JSON, not a mapping, a key given twice, a number that is not finite or has
            more than `MAX_DIGITS` digits, nesting beyond `MAX_JSON_DEPTH`, or half a surrogate pair.
    """
    try:
        values = load_strict(text)
    except json.JSONDecodeError as reason:
        place = f"line {reason.lineno}, column {reason.colno}"
        raise error(f"{label}: is not valid JSON ({reason.msg}, {place}); write it again") from reason
    except ValueError as reason:
        raise error(f"{label}: {reason}") from reason
    if not isinstance(values, dict):
        raise error(f"{label}: holds a {type(values).__name__} where a mapping belongs; write an object, {{...}}")
    return values


def load_strict(text: str) -> Any:
    """Any value of JSON text, as strict as `parse_json`.

    Raises:
        ValueError: with the reason as a phrase without its subject; json.JSONDecodeError where it is no JSON.
    """
    try:
        values = json.loads(
            text,
            object_pairs_hook=_no_repeats,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
        _check_values(values)
    except RecursionError as reason:
        raise ValueError(f"is nested more than {MAX_JSON_DEPTH} deep; make it flatter") from reason
    return values


def _destination(path: Path) -> tuple[int | None, Path]:
    """The open descriptor that `path` stands for, if any, and the file that its links lead to."""
    for _ in range(40):
        if _DESCRIPTOR.fullmatch(str(path)):
            names = {"stdout": 1, "stderr": 2}
            return names.get(path.name) or int(path.name), path
        if not path.is_symlink():
            return None, path
        path = path.parent / path.readlink()
    raise OSError(f"{path}: its links lead in a circle")


def _special(target: Path) -> bool:
    """Is there something else than an ordinary file? A file that its owner has closed to writing is not replaced."""
    if not target.exists():
        return False
    if target.is_dir():
        raise IsADirectoryError(None, "is a folder where a file belongs", str(target))
    if not os.access(target, os.W_OK):
        raise PermissionError(EACCES, os.strerror(EACCES), str(target))
    return not target.is_file()


def _staging_file(target: Path, apart: bool) -> tuple[Path, bool]:
    """An empty file to write into, and whether its content must be copied rather than renamed at the end."""
    if not apart:
        staging = staging_path(target)
        try:
            os.close(os.open(staging, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return staging, False
        except OSError as error:
            if error.errno not in _NO_NEIGHBOUR or not target.exists():
                raise
    opened, name = tempfile.mkstemp(suffix=target.suffix if len(target.suffix) < 20 else "")
    os.close(opened)
    return Path(name), True


def _take_the_place(staging: Path, target: Path) -> None:
    sync(staging)
    with suppress(OSError):
        before = target.stat()
        os.chmod(staging, stat.S_IMODE(before.st_mode))
        if hasattr(os, "chown"):  # Windows has none
            os.chown(staging, before.st_uid, before.st_gid)
    try:
        os.replace(staging, target)
    except OSError as error:
        if error.errno not in _NO_NEIGHBOUR or not target.is_file():
            raise
        _copy_through(staging, target, None)
    sync(target.parent)


def _copy_through(staging: Path, target: Path, descriptor: int | None) -> None:
    with staging.open("rb") as source, open(target if descriptor is None else os.dup(descriptor), "wb") as sink:
        shutil.copyfileobj(source, sink)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there and somebody else's
        return True
    return True


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {one_line(repr(twice), 60)} is given twice; keep one of them")
    return values


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"holds a number of {len(text)} digits, where at most {MAX_DIGITS} are read; shorten it")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds the number {text[:40]}, which is too large; write a finite one")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"holds {text}, which is no JSON number; write a finite one or null")


def _check_values(values: Any) -> None:
    """Depth and texts, without recursion."""
    waiting: list[tuple[Any, int]] = [(values, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_JSON_DEPTH:
            raise RecursionError
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise ValueError("holds half a surrogate pair, which is no character; write the whole character")
