"""Folders written whole or not at all, and one writer at a time.

`staged_folder` builds a folder under a neighbour's name and lets it take the place of the old one in one step, so that
a process killed at any moment leaves the old folder or the new one. `locked` keeps a second process out.
"""

import ctypes
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN, EINVAL, ENOLCK, ENOSYS, ENOTSUP, EWOULDBLOCK
from pathlib import Path

from lrkit.errors import FileError, LrkitError, UserError, clean, is_write_failure, os_sentence
from lrkit.files import glob_escape, remove, staging_path, sync

_OLD = ".old-"
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_AT_FDCWD = -100


@contextmanager
def staged_folder(target: Path, replace: bool = False) -> Generator[Path]:
    """Gives a new folder to fill; at the end it takes the place of `target`, which must be absent, empty or, with
    `replace`, may be a folder. On any failure, Ctrl-C included, the new folder is removed and `target` is as it was.

    Raises:
        FileError: it cannot be written, or `target` is taken.
    """
    final = Path(os.path.realpath(target))
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _restore(final)
        staging = staging_path(final)
        staging.mkdir()
    except (OSError, ValueError) as error:
        raise FileError(os_sentence(error, target)) from error
    try:
        yield staging
        _sync_all(staging)
        _take_the_place(staging, final, replace)
    except Exception as error:
        if isinstance(error, LrkitError) or not is_write_failure(error):
            raise
        raise FileError(os_sentence(error, target)) from error
    finally:
        remove(staging)


@contextmanager
def locked(folder: Path, what: str, inside: bool = False) -> Generator[bool]:
    """Holds the lock of a folder, which need not be there yet. The lock is the system's: it ends with the process.
    Gives whether it keeps others out: some network disks know no locks.

    `what` completes "another process ... it": "trains in", "exports into". The lock's file is beside the folder, or
    with `inside` in it, which must then be there.

    Raises:
        UserError: another process holds the lock.
        FileError: the lock's file cannot be made.
    """
    folder = Path(os.path.realpath(folder))
    file = folder / ".lock" if inside else folder.with_name(f".{folder.name[:100]}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held, certain = _acquire(file)
    except (OSError, ValueError) as error:
        raise FileError(os_sentence(error, file)) from error
    if held is None:
        raise UserError(
            f"{folder}: another process {what} it; wait until it is done{_owner(file)}, or give another folder"
        )
    try:
        with suppress(OSError):  # a full disk; the lock holds all the same
            os.write(held, f"{os.getpid()} {socket.gethostname()}\n".encode())
        yield certain
    finally:
        with suppress(OSError):  # whoever opened it meanwhile sees that the name is another file's, and tries again
            file.unlink()
        os.close(held)


def _owner(file: Path) -> str:
    """Who holds a lock, where its file says it."""
    with suppress(OSError, ValueError):
        pid, host = file.read_text(encoding="utf-8")[:300].split()
        return f" (process {int(pid)} on {clean(host)})"
    return ""


def _acquire(file: Path) -> tuple[int | None, bool]:
    """The open lock file, or None where somebody holds it; and whether the disk knows locks."""
    while True:
        opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            certain = _lock(opened)
        except OSError as error:
            os.close(opened)
            if error.errno in (EWOULDBLOCK, EAGAIN, EACCES):
                return None, True
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened), os.stat(file)):
                os.ftruncate(opened, 0)
                return opened, certain
        os.close(opened)


def _lock(opened: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(opened, msvcrt.LK_NBLCK, 1)  # pyright: ignore
        return True
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (ENOSYS, ENOTSUP, ENOLCK):
            raise
        return False
    return True


def _sync_all(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _take_the_place(staging: Path, final: Path, replace: bool) -> None:
    taken = os.path.lexists(final)
    if taken and not final.is_dir():
        raise FileError(f"{final}: is a file where a folder belongs; give another name")
    if taken and any(final.iterdir()):
        if not replace:
            raise FileError(f"{final}: is not empty; give another folder")
        if not _exchange(staging, final):
            _step_aside(staging, final)
    else:
        if taken and os.name == "nt":
            final.rmdir()
        os.rename(staging, final)
    sync(final.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in (ENOSYS, EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _step_aside(staging: Path, final: Path) -> None:
    """In two steps: a process killed in between is made good by the next `staged_folder` of that name."""
    old = final.with_name(f"{_OLD}{final.name}")
    remove(old)
    os.rename(final, old)
    os.rename(staging, final)
    remove(old)


def _restore(final: Path) -> None:
    for old in final.parent.glob(f"{_OLD}{glob_escape(final.name)}"):
        if os.path.lexists(final):
            remove(old)
        else:
            os.rename(old, final)
