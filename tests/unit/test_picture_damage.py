"""Damaged and hostile picture files: one sentence, without noise, within bounds of time and memory."""

import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from lrkit.errors import CapacityError, DataError, LrkitError
from lrkit.pictures import load as pictures
from lrkit.pictures.load import load_image
from tests.fuzz.pictures import cases, picture
from tests.picture_files import PHOTO, chunk, encoded, exif, same, with_chunk, with_segment

linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_jpeg_that_is_cut_off_is_refused(progressive: bool, share: float) -> None:
    raw = encoded(picture("RGB", (300, 200)), "JPEG", progressive=progressive, exif=exif(3))
    with pytest.raises(DataError, match=r"damaged or cut off .*; copy the file again"):
        load_image(raw[: int(share * len(raw))])


RAISED = (
    SyntaxError, struct.error, ValueError, TypeError, OverflowError, IndexError, KeyError, AttributeError, EOFError,
    ZeroDivisionError, zlib.error, RuntimeError, RecursionError, AssertionError, NotImplementedError, OSError,
    MemoryError, UnicodeError, Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # fmt: skip


@pytest.mark.parametrize("error", RAISED, ids=lambda error: error.__name__)
@pytest.mark.parametrize("where", ["open", "load"])
def test_whatever_a_decoder_raises_is_one_sentence_with_the_name(
    tmp_path: Path, error, where: str, monkeypatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error("line one:\nline \x1b[31mtwo")

    from PIL import PngImagePlugin

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "_open" if where == "open" else "load", fails)
    path = tmp_path / "photo.png"
    path.write_bytes(with_chunk(encoded(PHOTO, "PNG"), b"tEXt", b"key\0text"))
    with pytest.raises(LrkitError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ") and str(caught.value).isprintable()


def test_damaged_files_of_every_kind_end_in_an_answer_or_a_sentence() -> None:
    """A short run of the fuzzer; tests/fuzz runs more of it."""
    seen: set[str] = set()
    for name, content in cases(seed=2024, n=150):
        try:
            assert load_image(content).mode == "RGB", name
            seen.add("read")
        except LrkitError as error:
            assert str(error).isprintable() and len(str(error)) < 420, name
            seen.add(type(error).__name__)
    assert {"read", "DataError"} <= seen


def test_decoders_neither_warn_nor_write_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    tiff = bytearray(encoded(PHOTO, "TIFF", compression="tiff_adobe_deflate"))
    place = tiff.find(b"\x78\x9c")
    tiff[place : place + 2] = b"\xff\xff"
    samples = bytearray(encoded(PHOTO, "TIFF"))
    at = samples.find(struct.pack("<HHI", 277, 3, 1))
    samples[at + 8 : at + 10] = b"\xff\xff"
    cut = with_segment(encoded(PHOTO, "JPEG"), 0xE1, b"Exif\0\0" + exif(3, entries=40, tail=b"\x0f\x01\x02\0"))
    mpf = with_segment(encoded(PHOTO, "JPEG"), 0xE2, b"MPF\0" + bytes(range(60)))
    for raw in (bytes(tiff), bytes(samples), cut, mpf):
        try:
            load_image(raw)
        except DataError:
            continue
    assert capfd.readouterr() == ("", "")


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    raw, started = encoded(PHOTO, "PNG"), threading.Barrier(8)

    def decode(_: int) -> bool:
        started.wait()
        return all(same(load_image(raw), PHOTO) for _ in range(30))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(decode, range(8)))
    assert list(warnings.filters) == before


def test_a_file_made_to_keep_a_decoder_busy_is_given_up(monkeypatch) -> None:
    """Millions of tiny chunks, comments that grow: a decoder's time is counted whenever it reads on."""
    monkeypatch.setattr(pictures, "MAX_DECODE_SECONDS", 0.02)
    busy = with_chunk(encoded(PHOTO, "PNG"), b"teXt", b"")
    busy = busy[:33] + chunk(b"teXt", b"") * 200_000 + busy[33:]
    with pytest.raises(CapacityError, match="seconds to decode; save it again as PNG or JPEG"):
        load_image(busy)


BOMBS = """
import re
from tests.unit.test_picture_damage import bomb
from lrkit.errors import LrkitError
from lrkit.pictures.load import load_image
for mode, side in ARGS:
    raw = bomb(mode, side)
    try:
        print(mode, side, load_image(raw).size)
    except LrkitError as error:
        print(mode, side, "refused:", error)
found = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())
print(int(found[1]) // 1024)
"""
"""Prints what becomes of bombs, then the most resident memory in MiB."""


def bomb(mode: str, side: int) -> bytes:
    """A small PNG of a large square in one colour, written row by row."""
    bits, colour, values = {"L": (8, 0, 1), "RGBA": (8, 6, 4), "16": (16, 0, 2), "LA": (8, 4, 2), "RGB16": (16, 2, 6)}[
        mode
    ]
    packer, row = zlib.compressobj(1), b"\0" + b"\x7f" * (side * values)
    data = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def measure(args: list[tuple[str, int]]) -> list[str]:
    program = BOMBS.replace("ARGS", repr(args))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@linux
def test_a_16_bit_bomb_stays_within_a_bound_of_memory() -> None:
    """As large as is decoded at all, it took 1.6 GB: its values became numbers of 64 bits, all at once."""
    *found, peak = measure([("16", 6000), ("16", 9000)])
    assert found[0] == "16 6000 (6000, 6000)"
    assert "9000 x 9000 pixels, above the limit" in found[1]
    assert int(peak) < 450


@linux
@pytest.mark.slow
def test_bombs_of_every_mode_stay_within_a_bound_of_memory() -> None:
    *found, peak = measure([(mode, 8192) for mode in ("L", "16", "RGBA", "LA", "RGB16")])
    assert all(line.endswith("(8192, 8192)") for line in found)
    assert int(peak) < 800
