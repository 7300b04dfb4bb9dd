"""Picture files made by hand for tests: with chunks, segments and EXIF blocks that no library would write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.fuzz.pictures import picture

PHOTO = picture("RGB", (48, 31))
"""A small picture with structure and noise."""


def encoded(image: Image.Image, format: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **how)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def same(given: Image.Image, expected: Image.Image) -> bool:
    return given.mode == "RGB" and np.array_equal(np.asarray(given), np.asarray(expected))


def chunk(name: bytes, data: bytes, wrong_sum: bool = False) -> bytes:
    total = zlib.crc32(name + data) ^ (1 if wrong_sum else 0)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", total)


def with_chunk(png: bytes, name: bytes, data: bytes, wrong_sum: bool = False, last: bool = False) -> bytes:
    """A chunk behind the header, or behind the pixels."""
    place = len(png) - 12 if last else 33
    return png[:place] + chunk(name, data, wrong_sum) + png[place:]


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def exif(orientation: int, order: str = "<", entries: int = 1, tail: bytes = b"") -> bytes:
    """An EXIF block by hand: one orientation, then whatever `tail` holds in place of further entries."""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return start + struct.pack(order + "HHHIHH", entries, 0x0112, 3, 1, orientation, 0) + tail
