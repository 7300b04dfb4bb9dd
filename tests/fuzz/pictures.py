"""Seeded picture files for fuzzing: valid ones of every kind, then damaged by flips, cuts, edits of headers and chunks.

`cases(seed, n)` gives (name, content); the name says how a case was made, so that it can be made once more. Sources are
small, and so are most sizes that headers are made to declare; some declare bombs.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from PIL import Image

Mutate = Callable[[bytes, random.Random], bytes]
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB", "HSV", "PA", "La", "RGBa")
_INTERESTING = (0, 1, 2, 7, 8, 16, 31, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 1 << 24, (1 << 31) - 1, 1 << 31)


def cases(seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """`n` picture files, about one in twelve of them undamaged."""
    rng = random.Random(f"pictures {seed}")
    sources = valid()
    names = sorted(sources)
    for number in range(n):
        name = rng.choice(names)
        content, steps = sources[name], list[str]()
        for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3, 3, 5, 8, 1))):
            mutation = rng.choice(sorted(MUTATIONS))
            content = MUTATIONS[mutation](content, rng)
            steps.append(mutation)
        yield f"{seed}/{number} {name} {'+'.join(steps) or 'as it is'}", content


@cache
def valid() -> dict[str, bytes]:
    """Undamaged files by name: formats, modes, animations, metadata, a handful of large and of odd sizes."""
    made = {**_by_mode(), **_tiffs(), **_with_metadata(), **_animations(), **_odd_sizes()}
    made["ppm-plain"] = b"P3\n3 2\n255\n" + b" ".join(b"%d" % value for value in range(18)) + b"\n"
    made["pgm-16"] = b"P5 4 3 65535\n" + bytes(range(24))
    made["pbm"] = b"P1\n4 2\n0 1 0 1\n1 1 0 0\n"
    made["pfm"] = b"Pf\n2 2\n-1.0\n" + struct.pack("<4f", 0, 0.5, 1, 2)
    made["bmp-rle"] = _rle_bmp()
    made["svg"] = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    made["eps"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
    made["ico"] = _saved(_picture("RGBA"), "ICO", sizes=[(16, 16)])
    made["nothing"] = b""
    return made


def picture(mode: str, size: tuple[int, int] = (37, 23), seed: int = 0) -> Image.Image:
    """A picture with structure and noise in any mode."""
    width, height = size
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    values[: height // 2] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    image = Image.fromarray(values)
    if mode.startswith("I;16"):
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("La", "PA"):
        return image.convert("LA").convert(mode)
    if mode == "RGBa":
        return image.convert("RGBA").convert(mode)
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    return image.convert(mode)


def _picture(mode: str) -> Image.Image:
    return picture(mode)


def _saved(image: Image.Image, format: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **how)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def _by_mode() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"):
        for mode in MODES:
            try:
                found[f"{format.lower()}-{mode}"] = _saved(_picture(mode), format)
            except (OSError, KeyError, ValueError):  # the format has no such mode
                continue
    found["jpeg-progressive"] = _saved(_picture("RGB"), "JPEG", progressive=True, quality=60)
    found["png-palette-clear"] = _saved(_picture("P"), "PNG", transparency=bytes(range(200)))
    found["png-rgb-clear"] = _saved(_picture("RGB"), "PNG", transparency=(255, 255, 255))
    found["webp-lossless"] = _saved(_picture("RGBA"), "WEBP", lossless=True)
    found["png-16-rgb"] = _png(3, 2, 16, 2, b"".join(b"\0" + bytes(range(18)) for _ in range(2)))
    found["png-interlaced"] = _png(2, 2, 8, 0, b"\0\x40" + b"\0\x80" + b"\0\xc0\xff", interlaced=1)
    return found


def _tiffs() -> dict[str, bytes]:
    found = {
        f"tiff-{name}": _saved(_picture("RGB"), "TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    }
    found["tiff-group4"] = _saved(_picture("1"), "TIFF", compression="group4")
    found["tiff-pages"] = _saved(_picture("L"), "TIFF", save_all=True, append_images=[_picture("RGB")])
    found["tiff-big"] = _saved(_picture("L"), "TIFF", big_tiff=True)
    return found


def _with_metadata() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif.get_ifd(0x8769)[0x9000] = b"0230"
    block, profile = exif.tobytes(), b"\0\0\0\x80lcms" + bytes(120)
    how = {"exif": block, "icc_profile": profile}
    found = {f"{name.lower()}-exif-icc": _saved(_picture("RGB"), name, **how) for name in ("PNG", "JPEG", "WEBP")}
    found["tiff-exif"] = _saved(_picture("RGB"), "TIFF", exif=exif)
    found["jpeg-comment"] = _saved(_picture("RGB"), "JPEG", comment=b"a comment " * 50)
    found["jpeg-mpo"] = _saved(_picture("RGB"), "MPO", save_all=True, append_images=[_picture("RGB")])
    return found


def _animations() -> dict[str, bytes]:
    frames = [picture("RGB", seed=seed) for seed in range(3)]
    return {
        f"{name.lower()}-animated": _saved(frames[0], name, save_all=True, append_images=frames[1:], duration=50)
        for name in ("GIF", "PNG", "WEBP")
    }


def _odd_sizes() -> dict[str, bytes]:
    found = {f"png-{width}x{height}": _saved(picture("L", (width, height)), "PNG")
             for width, height in ((1, 1), (1, 200), (201, 1), (3, 700), (500, 400))}  # fmt: skip
    for width, height in ((8192, 8192), (30_000, 30_000), (1, 60_000_000), (0, 5)):
        rows = zlib.compress(bytes(4096))
        found[f"png-bomb-{width}x{height}"] = _png(width, height, 8, 6, rows, ready=True)
    found["gif-bomb"] = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + _GIF_FRAME
    found["png-many-chunks"] = _PNG_START + _chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)) + _chunk(
        b"teXt", b"") * 5000  # fmt: skip
    return found


_GIF_FRAME = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\x00;"
_PNG_START = b"\x89PNG\r\n\x1a\n"


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(
    width: int, height: int, bits: int, colour: int, rows: bytes, interlaced: int = 0, ready: bool = False
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    data = rows if ready else zlib.compress(rows)
    return _PNG_START + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _rle_bmp() -> bytes:
    pixels = b"\x04\x01\x00\x00\x02\x02\x00\x02\x01\x01\x00\x03\x01\x02\x03\x00\x00\x01"
    palette = bytes(range(16)) * 64
    header = struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, 8, 1, len(pixels), 2835, 2835, 256, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def _flip_bits(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _edit_header(content: bytes, rng: random.Random) -> bytes:
    """Numbers that decoders stumble over, in the first bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        size = rng.choice((1, 2, 4))
        place, value = rng.randrange(max(1, min(len(data), 220))), rng.choice(_INTERESTING)
        order = rng.choice(("big", "little"))
        data[place : place + size] = (value % (1 << 8 * size)).to_bytes(size, order)  # pyright: ignore
    return bytes(data)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _cut_inside(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.choice((1, 4, 13, 100)) :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.choice((b"\0", b"\xff", b"\xff\xd8", rng.randbytes(9), b"\0" * 300)) + content[place:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    piece = content[start : start + rng.choice((1, 12, 100))]
    return content[:start] + piece * rng.choice((2, 50, 500)) + content[start:]


def _splice(content: bytes, rng: random.Random) -> bytes:
    """The beginning of one file and the end of another."""
    other = valid()[rng.choice(sorted(valid()))]
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _edit_chunk(content: bytes, rng: random.Random) -> bytes:
    """PNG: a chunk renamed, doubled, dropped or with other data, its sum set right; other files: their bits flipped."""
    if not content.startswith(_PNG_START):
        return _flip_bits(content, rng)
    chunks, place = list[tuple[bytes, bytes]](), len(_PNG_START)
    while place + 8 <= len(content) and len(chunks) < 6000:
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += length + 12
    if not chunks:
        return content
    index = rng.randrange(len(chunks))
    name, data = chunks[index]
    kinds = (b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"pHYs")
    new = {
        "rename": [(rng.choice(kinds), data)],
        "double": [(name, data)] * 2,
        "drop": [],
        "data": [(name, _edit_header(data, rng) if data else rng.randbytes(5))],
        "add": [(name, data), (rng.choice(kinds), rng.choice((b"", b"x\0\0" + zlib.compress(bytes(70_000)))))],
    }[rng.choice(("rename", "double", "drop", "data", "add"))]
    return _PNG_START + b"".join(_chunk(*one) for one in [*chunks[:index], *new, *chunks[index + 1 :]])


MUTATIONS: dict[str, Mutate] = {
    "bits": _flip_bits,
    "header": _edit_header,
    "cut": _cut,
    "gap": _cut_inside,
    "insert": _insert,
    "repeat": _repeat,
    "splice": _splice,
    "chunk": _edit_chunk,
}
