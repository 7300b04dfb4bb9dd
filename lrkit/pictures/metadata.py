"""The metadata around the pixels of an image file: reads the orientation leniently, and removes the rest.

Place in the pipeline: load.py asks for the orientation of a decoded picture, and for a file without metadata where
Pillow refuses one: EXIF, colour profiles and texts that cannot be parsed must not refuse sound pixels.
"""

import struct
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image

_ORIENTATION = int(ExifTags.Base.Orientation)
_SHORT = 3
"""The TIFF type of an orientation."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG_START = b"\xff\xd8"
_JPEG_SCAN, _JPEG_APPS, _JPEG_COMMENT = 0xDA, range(0xE0, 0xF0), 0xFE
_JPEG_KEPT_APPS = (0xE0, 0xEE)
"""JFIF, and Adobe's marker, which says what the colours are."""


def turn_of(image: Image.Image, content: bytes | None = None) -> Image.Transpose | None:
    """How a decoded picture is turned upright; None where it is, or where nothing readable says otherwise.

    `content` is the file it came from: where Pillow cannot parse its EXIF, the orientation is looked for in it.
    """
    found: Any = None
    try:
        tags = getattr(image, "tag_v2", None)  # TIFF: the picture's own tags
        found = image.getexif().get(_ORIENTATION) if tags is None else tags.get(_ORIENTATION)
    except Exception:  # whatever parsing foreign EXIF raises: the pixels are sound
        found = None
    if found is None and content is not None and getattr(image, "tag_v2", None) is None:
        exif = image.info.get("exif")
        found = exif_orientation(exif if isinstance(exif, bytes) else _exif_in(content))
    return _TURNS.get(found) if isinstance(found, int) else None


def exif_orientation(exif: bytes) -> int | None:
    """The orientation in the first directory of an EXIF block, whatever else in it is damaged; None without one."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 10:
        return None
    (start,) = struct.unpack_from(order + "I", block, 4)
    if start + 2 > len(block):
        return None
    (count,) = struct.unpack_from(order + "H", block, start)
    for place in range(start + 2, min(start + 2 + 12 * count, len(block) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", block, place)
        if (tag, kind) == (_ORIENTATION, _SHORT):
            return int(struct.unpack_from(order + "H", block, place + 8)[0])
    return None


def without_metadata(content: bytes) -> bytes | None:
    """The same pixels without EXIF, profiles and texts: PNG and JPEG; None for other files, or where nothing is left
    out."""
    if content.startswith(_PNG_START):
        kept = _PNG_START + b"".join(chunk for name, chunk in _png_chunks(content) if name in _PNG_PIXELS)
    elif content.startswith(_JPEG_START):
        kept = _JPEG_START + b"".join(
            part for marker, part in _jpeg_parts(content) if marker in _JPEG_KEPT_APPS or not _is_metadata(marker)
        )
    else:
        return None
    return kept if len(kept) < len(content) else None


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, whole chunk with its length and sum) for each, the last one as far as it goes."""
    place = len(_PNG_START)
    while place + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        yield content[place + 4 : place + 8], content[place : place + length + 12]
        place += length + 12


def _jpeg_parts(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, whole segment) for each before the pixels, then all that follows as one."""
    place = len(_JPEG_START)
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == _JPEG_SCAN:
            break
        (length,) = struct.unpack_from(">H", content, place + 2)
        yield marker, content[place : place + 2 + length]
        place += 2 + length
    yield _JPEG_SCAN, content[place:]


def _is_metadata(marker: int) -> bool:
    return marker in _JPEG_APPS or marker == _JPEG_COMMENT


def _exif_in(content: bytes) -> bytes:
    """The first EXIF block of a JPEG or PNG file; empty without one."""
    if content.startswith(_PNG_START):
        return next((chunk[8:-4] for name, chunk in _png_chunks(content) if name == b"eXIf"), b"")
    if not content.startswith(_JPEG_START):
        return b""
    return next(
        (part[4:] for marker, part in _jpeg_parts(content) if part[4:10] == b"Exif\0\0" and marker == 0xE1), b""
    )
