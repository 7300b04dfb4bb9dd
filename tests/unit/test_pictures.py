"""Pictures from anywhere: every kind that is documented is read, and whatever is wrong with a file is one sentence."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from lrkit.errors import CapacityError, DataError
from lrkit.pictures import input as picture_input
from lrkit.pictures import load as pictures
from lrkit.pictures.input import as_pictures
from lrkit.pictures.load import FORMATS, load_image
from lrkit.pictures.metadata import exif_orientation
from tests.fuzz.pictures import MODES, picture
from tests.picture_files import PHOTO, encoded, exif, same, with_chunk, with_segment

# ---- what callers hand over


def test_a_picture_is_taken_in_every_sensible_form(tmp_path: Path) -> None:
    raw = encoded(PHOTO, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(raw)
    pixels = np.asarray(PHOTO)
    with path.open("rb") as opened:
        opened.read(20)  # as somebody left it
        forms = [path, str(path), raw, bytearray(raw), memoryview(raw), io.BytesIO(raw), opened, PHOTO, pixels]
        forms += [pixels[::-1][::-1], np.asfortranarray(pixels)]
        assert all(same(load_image(form), PHOTO) for form in forms)  # pyright: ignore
    grey = np.asarray(PHOTO.convert("L"))
    assert same(load_image(grey), PHOTO.convert("L").convert("RGB"))
    assert same(load_image(grey[:, :, None]), load_image(grey))
    clear = np.dstack([pixels, np.zeros_like(grey)])
    assert load_image(clear).getpixel((3, 3)) == (255, 255, 255)


def test_pictures_of_a_question_come_alone_in_a_list_or_from_a_generator() -> None:
    raw = encoded(PHOTO, "PNG")
    assert as_pictures(None) == () and as_pictures([]) == ()
    assert as_pictures(raw) == (raw,) and as_pictures("a.png") == ("a.png",)
    assert as_pictures(x for x in ["a.png", "b.png"]) == ("a.png", "b.png")
    # An open file becomes its bytes: the trace is drawn from them later.
    assert as_pictures([io.BytesIO(raw), Path("a.png")]) == (raw, Path("a.png"))


class Unreadable(io.RawIOBase):
    """A file object of a caller that fails in its own way."""

    def read(self, size: int = -1) -> bytes:
        raise ConnectionError("gone")


NOT_TAKEN: dict[str, tuple[object, str]] = {
    "none": (None, "the picture is None; give a path"),
    "number": (3.5, "the picture is a float"),
    "mapping": ({"image": "a.png"}, "the picture is a dict"),
    "floats": (np.zeros((4, 4, 3), np.float32), "an array of float32 with shape (4, 4, 3)"),
    "wide values": (np.zeros((4, 4), np.uint16), "an array of uint16"),
    "five channels": (np.zeros((4, 4, 5), np.uint8), "with shape (4, 4, 5)"),
    "channels first": (np.zeros((3, 40, 40), np.uint8), "with shape (3, 40, 40)"),
    "batch": (np.zeros((1, 4, 4, 3), np.uint8), "with shape (1, 4, 4, 3)"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), "with shape (0, 4, 3)"),
    "text file": (io.StringIO("words"), "gives a str, not bytes; open the file with 'rb'"),
    "closed": (io.BufferedReader(io.BytesIO(b"x")).detach(), "is not an image file"),
    "unreadable": (Unreadable(), "cannot be read (ConnectionError)"),
    "empty": (b"", "is empty"),
    "words": (b"rooms.png", "is not an image file of the kinds that are read (PNG, JPEG"),
    "address": ("https://example.org/a.png", "is an address, and nothing is fetched"),
    "address as a path": (Path("ftp://example.org/a.png"), "is an address, and nothing is fetched"),
    "data": ("data:image/png;base64," + "QUJD" * 9000, "is a data URI, not a path"),
    "base64": ("QUJD" * 9000, "the name is too long"),
    "NUL": ("a\0.png", "holds a NUL character"),
    "half a character": ("a\ud83d.png", "half a surrogate pair"),
    "empty path": ("", "is empty; give a file's path"),
    "missing": ("no/such.png", "there is no such image file"),
    "folder": ("/", "is a folder"),
    "device": ("/dev/zero", "is a device"),
}


@pytest.mark.parametrize("what", NOT_TAKEN)
def test_what_is_no_picture_is_refused_in_a_sentence_that_never_prints_it_whole(what: str) -> None:
    given, says = NOT_TAKEN[what]
    with pytest.raises(DataError) as error:
        load_image(given)  # pyright: ignore[reportArgumentType]
    text = str(error.value)
    assert says in text and text.isprintable() and len(text) < 420


def test_nobody_waits_at_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="is a pipe; give the path of an image file"):
        load_image(tmp_path / "pipe.png")


def test_a_file_above_the_size_that_is_read_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(picture_input, "MAX_FILE_BYTES", 1 << 20)
    path = tmp_path / "large.png"
    path.write_bytes(encoded(PHOTO, "PNG") + bytes(1 << 20))
    for form in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        with pytest.raises(CapacityError, match="has more than 1 MiB, the most that is read"):
            load_image(form)


# ---- kinds of pictures


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("F", "LAB")])
def test_every_mode_becomes_rgb_and_strip_by_strip_alike(mode: str, monkeypatch) -> None:
    image = picture(mode, (37, 53))
    whole = load_image(image)
    monkeypatch.setattr(pictures, "_STRIP_PIXELS", 100)
    assert whole.mode == "RGB" and whole.size == (37, 53) and same(load_image(image), whole)


def test_colours_without_one_rgb_form_are_refused() -> None:
    for mode, says in (("F", "floating-point"), ("LAB", "LAB colours")):
        with pytest.raises(DataError, match=says):
            load_image(picture(mode))


def test_a_grey_that_is_clear_in_16_bits_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 700, 65535]], np.uint16))
    path = tmp_path / "deep.png"
    image.save(path, transparency=700)
    assert np.asarray(load_image(path))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_the_first_frame_of_several_is_taken(format: str) -> None:
    if format == "AVIF" and "AVIF" not in pictures._formats():  # pyright: ignore[reportPrivateUsage]
        pytest.skip("this Pillow was built without AVIF")
    frames = [Image.new("RGB", (40, 24), colour) for colour in ("red", "blue", "lime")]
    raw = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=40)
    red, green, blue = load_image(raw).getpixel((20, 12))  # pyright: ignore
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("format", ["ICO", "EPS", "PCX", "TGA", "DDS", "PSD", "ICNS", "SGI", "PDF"])
def test_other_formats_are_refused_with_the_list_of_those_that_are_read(format: str) -> None:
    """Their decoders are never tried: one of them starts Ghostscript."""
    raw = b"8BPS\0\1" + bytes(40) if format == "PSD" else encoded(picture("RGB", (32, 32)), format)
    with pytest.raises(DataError, match="is not an image file of the kinds that are read") as error:
        load_image(raw)
    assert all(name in str(error.value) for name in FORMATS if name in pictures._formats())  # pyright: ignore


def test_a_file_is_read_by_its_content_whatever_its_ending(tmp_path: Path) -> None:
    for ending, format in ((".jpg", "PNG"), (".eps", "PNG"), ("", "BMP"), (".png", "TIFF")):
        path = tmp_path / f"photo{ending}"
        path.write_bytes(encoded(PHOTO, format))
        assert same(load_image(path), PHOTO)


# ---- what stands around the pixels


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_turns_a_picture_upright_as_pillow_does(format: str, orientation: int) -> None:
    block = Image.Exif()
    block[0x0112] = orientation
    how = {"lossless": True} if format == "WEBP" else {}
    raw = encoded(PHOTO, format, exif=block, **how)
    with Image.open(io.BytesIO(raw)) as stored:
        assert same(load_image(raw), ImageOps.exif_transpose(stored))


def test_exif_that_cannot_be_written_back_does_not_refuse_the_pixels() -> None:
    """Pillow's exif_transpose writes EXIF again, and fails on what it read: here, a height that is a text."""
    block = b"Exif\0\0" + exif(6, ">", 2, struct.pack(">HHI4s", 0x0101, 2, 4, b"abc\0") + bytes(4))
    raw = encoded(PHOTO, "JPEG", exif=block)
    with Image.open(io.BytesIO(raw)) as stored:
        with pytest.raises(struct.error):
            ImageOps.exif_transpose(stored)
        assert same(load_image(raw), stored.transpose(Image.Transpose.ROTATE_270))
        assert same(load_image(stored), load_image(raw))


SOUND = {
    "EXIF cut inside its entries": with_segment(
        encoded(PHOTO, "JPEG"), 0xE1, b"Exif\0\0" + exif(3, entries=40, tail=b"\x0f\x01\x02\0")
    ),
    "EXIF with an entry far outside": with_segment(
        encoded(PHOTO, "JPEG"), 0xE1, b"Exif\0\0" + exif(3, ">", 2, struct.pack(">HHII", 0x010F, 2, 1 << 30, 1 << 31))
    ),
    "EXIF behind a directory that loops": with_segment(
        encoded(PHOTO, "JPEG"), 0xE1, b"Exif\0\0" + exif(3, "<", 2, struct.pack("<HHII", 0x8769, 4, 1, 8))
    ),
    "PNG EXIF with a wrong sum": with_chunk(encoded(PHOTO, "PNG"), b"eXIf", exif(3), wrong_sum=True),
    "PNG EXIF behind the pixels": with_chunk(encoded(PHOTO, "PNG"), b"eXIf", exif(3), last=True),
}


@pytest.mark.parametrize("what", SOUND)
def test_sound_pixels_are_used_and_turned_though_their_exif_is_damaged(what: str) -> None:
    with Image.open(io.BytesIO(encoded(PHOTO, "JPEG" if what.startswith("EXIF") else "PNG"))) as plain:
        assert same(load_image(SOUND[what]), plain.transpose(Image.Transpose.ROTATE_180))


AROUND = {
    "no EXIF at all": with_segment(encoded(PHOTO, "JPEG"), 0xE1, b"Exif\0\0"),
    "EXIF of noise": with_segment(encoded(PHOTO, "JPEG"), 0xE1, b"Exif\0\0" + bytes(range(200))),
    "orientation 77": with_segment(encoded(PHOTO, "JPEG"), 0xE1, b"Exif\0\0" + exif(77)),
    "profile of noise": with_segment(encoded(PHOTO, "JPEG"), 0xE2, b"ICC_PROFILE\0\1\1" + b"noise"),
    "profile parts that miss": with_segment(encoded(PHOTO, "JPEG"), 0xE2, b"ICC_PROFILE\0\7\3" + b"x" * 90),
    "list of pictures of noise": with_segment(encoded(PHOTO, "JPEG"), 0xE2, b"MPF\0" + bytes(range(60))),
    "Photoshop's noise": with_segment(encoded(PHOTO, "JPEG"), 0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\xff" * 9),
    "PNG profile of noise": with_chunk(encoded(PHOTO, "PNG"), b"iCCP", b"name\0\0noise"),
    "PNG profile without name": with_chunk(encoded(PHOTO, "PNG"), b"iCCP", b""),
    "PNG profile of another kind": with_chunk(encoded(PHOTO, "PNG"), b"iCCP", b"name\0\7noise"),
    "PNG profile of 9 MB": with_chunk(encoded(PHOTO, "PNG"), b"iCCP", b"name\0\0" + zlib.compress(bytes(9 << 20))),
    "PNG text of 90 MB": with_chunk(encoded(PHOTO, "PNG"), b"zTXt", b"name\0\0" + zlib.compress(bytes(90 << 20))),
    "PNG text with a wrong sum": with_chunk(encoded(PHOTO, "PNG"), b"tEXt", b"key\0text", wrong_sum=True),
    "PNG physical size cut": with_chunk(encoded(PHOTO, "PNG"), b"pHYs", b"\0\0"),
    "PNG gamma cut": with_chunk(encoded(PHOTO, "PNG"), b"gAMA", b"\0"),
    "PNG animation cut": with_chunk(encoded(PHOTO, "PNG"), b"acTL", b"\0"),
}


@pytest.mark.parametrize("what", AROUND)
def test_damage_around_sound_pixels_is_passed_over(what: str) -> None:
    with Image.open(io.BytesIO(encoded(PHOTO, "PNG" if what.startswith("PNG") else "JPEG"))) as plain:
        assert same(load_image(AROUND[what]), plain)


def test_the_orientation_is_found_in_whatever_is_left_of_exif() -> None:
    assert exif_orientation(b"Exif\0\0" + exif(6)) == exif_orientation(exif(6, ">")) == 6
    for damaged in (b"", b"II", b"II*\0\xff\xff\xff\xff", exif(6)[:14], b"XX" + exif(6)[2:], exif(6)[:9]):
        assert exif_orientation(damaged) is None
