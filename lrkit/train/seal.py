"""A digest inside the file that it is of, so that both take their place at once: the comment that ends a zip archive.

    torch.save -> `seal` -> state.pt -> `is_broken`, before `--resume` reads it (lrkit/train/training_state.py)

torch reads a sealed file as any other. The digest is of all bytes in front of the comment, with the comment's length,
the archive's last two bytes, as 0: as torch wrote them.
"""

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

_MARK = b"lrkit sha256 "
_SIZE = len(_MARK) + 64
_END, _END_SIZE = b"PK\x05\x06", 22
"""How an archive's last record begins, and its length without a comment."""
_AT_ONCE = 1 << 22


def seal(file: Path) -> None:
    """Puts the digest behind an archive that has just been written and has no comment."""
    with file.open("r+b") as archive:
        size = archive.seek(0, os.SEEK_END)
        archive.seek(size - _END_SIZE)
        end = archive.read()
        assert end.startswith(_END) and end.endswith(b"\0\0"), "no archive without a comment"
        comment = _MARK + _digest(archive, size).encode()
        archive.seek(size - 2)
        archive.write(struct.pack("<H", _SIZE) + comment)


def is_broken(file: Path) -> bool:
    """Has a sealed file other bytes than when it was sealed? A file without a seal has not, as far as this can tell."""
    with file.open("rb") as archive:
        size = archive.seek(0, os.SEEK_END) - _SIZE
        if size < _END_SIZE:
            return False
        archive.seek(size)
        comment = archive.read()
        return comment.startswith(_MARK) and comment[len(_MARK) :] != _digest(archive, size).encode()


def _digest(archive: BinaryIO, size: int) -> str:
    """Of the first `size` bytes, with the last two as 0."""
    archive.seek(0)
    found, left = hashlib.sha256(), size - 2
    while left and (piece := archive.read(min(left, _AT_ONCE))):
        found.update(piece)
        left -= len(piece)
    found.update(b"\0\0")
    return found.hexdigest()
