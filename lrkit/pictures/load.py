"""A picture of any kind to an upright RGB picture. Pillow and numpy only.

Place in the pipeline: a path, bytes, an array (input.py) -> `load_image` -> a family's `Geometry.cut`.
Pixels equal those that transformers' Pillow image processor sees, with two differences on purpose. EXIF rotation is
applied here. 16-bit greyscale is scaled to 8 bits; Pillow's own conversion, which transformers uses, turns nearly every
16-bit picture white. Of an animation or a file of several pages the first frame is taken.

Files come from strangers. So only the decoders of `FORMATS` are tried, each of their errors becomes one sentence, and
file size, pixels, memory and time are bounded.
"""

import io
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from lrkit.errors import CapacityError, DataError, one_line
from lrkit.pictures.input import ImageSource, name_of, read_source, refuse_pixels
from lrkit.pictures.metadata import turn_of, without_metadata
from lrkit.pictures.quiet import quiet

_PLUGINS = {
    "PNG": "PngImagePlugin",
    "JPEG": "JpegImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "AVIF": "AvifImagePlugin",
}
FORMATS = tuple(_PLUGINS)
"""What image files may be. APNG and MPO are kinds of PNG and JPEG; AVIF needs a Pillow that was built with it."""

MAX_INPUT_PIXELS = 8192 * 8192
"""Largest picture that is decoded; a larger one is refused before it takes memory."""
MAX_HELD_PIXELS = MAX_INPUT_PIXELS
"""Pixels of the pictures of one prompt that are held decoded at once, of four bytes each."""
MAX_DECODE_SECONDS = 6.0
"""Processor time after which the decoder of a file is stopped that was made to keep it busy without end."""
_STRIP_PIXELS = 1 << 21
"""Pixels that are converted at once: what a conversion needs beside its result stays below 70 MB."""


def load_image(source: ImageSource, max_input_pixels: int = MAX_INPUT_PIXELS) -> Image.Image:
    """An upright RGB picture: EXIF rotation applied, transparency laid on white, greyscale and palettes expanded.

    `source`: see `TAKEN` in input.py. Of an animation or several pages, the first.

    Raises:
        DataError: no picture, missing, damaged, of a format that is not in `FORMATS`, or without an 8-bit form.
        CapacityError: more than `max_input_pixels` pixels, or a file that is too large.
    """
    name, given = name_of(source), read_source(source, max_input_pixels)
    with quiet():
        if isinstance(given, Image.Image):
            return _guarded(name, lambda: _upright_rgb(given, name, max_input_pixels))
        return _guarded(name, lambda: _decode(given, name, max_input_pixels))


class Pictures:
    """The upright RGB pictures of one prompt; those beyond `MAX_HELD_PIXELS` are decoded again when they are taken."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        """Decodes each once. Raises as `load_image`."""
        self._sources = sources
        self._held: dict[int, Image.Image] = {}
        self.sizes: list[tuple[int, int]] = []
        """Per picture: (width, height) in pixels, upright."""
        room = MAX_HELD_PIXELS
        for index, source in enumerate(sources):
            picture = load_image(source)
            self.sizes.append(picture.size)
            room -= picture.width * picture.height
            if room >= 0:
                self._held[index] = picture

    def take(self, index: int) -> Image.Image:
        """A picture, for the first and last time.

        Raises:
            DataError: its file has changed since.
        """
        picture = self._held.pop(index, None)
        if picture is None:
            picture = load_image(self._sources[index])
            if picture.size != self.sizes[index]:
                raise DataError(f"{name_of(self._sources[index])}: was changed while it was read; ask again")
        return picture


def _guarded(name: str, decode: Callable[[], Image.Image]) -> Image.Image:
    """What `decode` makes; whatever a decoder raises as one sentence."""
    try:
        return decode()
    except (DataError, CapacityError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CapacityError(f"{name}: is larger than {MAX_INPUT_PIXELS} pixels; make it smaller") from error
    except MemoryError as error:
        raise CapacityError(f"{name}: needs more memory than there is; make it smaller") from error
    except Exception as error:  # decoders raise nearly every class there is
        raise DataError(
            f"{name}: the image data are damaged or cut off ({one_line(error, 120)}); copy the file again"
        ) from error


def _decode(content: bytes, name: str, max_input_pixels: int) -> Image.Image:
    """The picture in a file; without what stands around the pixels, where that is what cannot be read."""
    file = _Reader(content, name)
    try:
        return _decode_file(file, name, max_input_pixels, content)
    except CapacityError:
        raise
    except Exception as error:
        complaint = error.with_traceback(None)  # which would hold the half-decoded picture in memory
    bare = without_metadata(content)
    if bare is None:
        raise complaint
    try:
        return _decode_file(_Reader(bare, name, file.started), name, max_input_pixels, content)
    except CapacityError:
        raise
    except Exception:  # the pixels are damaged: the first complaint is about the file as it was given
        raise complaint from None


def _decode_file(file: "_Reader", name: str, max_input_pixels: int, content: bytes) -> Image.Image:
    try:
        image = Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {_why_unknown(content)}") from error
    with image:
        return _upright_rgb(image, name, max_input_pixels, content)


def _upright_rgb(image: Image.Image, name: str, max_input_pixels: int, content: bytes | None = None) -> Image.Image:
    width, height = image.size
    refuse_pixels(width, height, max_input_pixels, name)
    if width <= 0 or height <= 0:
        raise DataError(f"{name}: has {width} x {height} pixels; a picture needs at least one")
    if content is not None and image.format == "TIFF":
        # Pillow turns it when it is loaded, and fails where its tags cannot be parsed; here it is turned below.
        setattr(image, "load_end", lambda: None)  # noqa: B010 (Pillow has no switch for it)
    image.load()
    picture = to_rgb(image, name)
    turn = turn_of(image, content)
    return picture if turn is None else picture.transpose(turn)


def to_rgb(image: Image.Image, name: str = "the picture") -> Image.Image:
    """RGB as transformers' `convert_to_rgb` makes it (transparency on white), but 16-bit greyscale scaled to 8 bits.

    Raises:
        DataError: floating-point pixels, integers beyond 16 bits, or LAB colours.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise DataError(f"{name}: has floating-point pixels, whose white is not defined; save it with 8 bits a channel")
    if image.mode == "LAB":
        raise DataError(f"{name}: has LAB colours, which have no one RGB form; save it as RGB")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _by_strips(image, lambda strip: _scaled_to_8_bits(strip, image.info.get("transparency"), name))
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        return _by_strips(image, _on_white)
    return image.convert("RGB")


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert`, which treats every pixel for itself, on so many rows at a time that it needs little memory."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        whole.paste(convert(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return whole


def _scaled_to_8_bits(image: Image.Image, clear: Any, name: str) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{name}: has pixel values beyond 16 bits; save it with 8 bits a channel")
    # 257 = 65535 / 255: white stays white.
    bytes_ = np.round(values / 257).astype(np.uint8)
    if isinstance(clear, int):
        bytes_[values == clear] = 255
    return Image.fromarray(bytes_).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


class _Reader(io.BytesIO):
    """A file in memory whose reader is stopped when it has taken too long: headers can be made to go on and on."""

    def __init__(self, content: bytes, name: str, started: float | None = None) -> None:
        super().__init__(content)
        self.name = name
        self.started = time.thread_time() if started is None else started

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() - self.started > MAX_DECODE_SECONDS:
            raise CapacityError(
                f"{self.name}: takes more than {MAX_DECODE_SECONDS:.0f} seconds to decode; save it again as PNG or JPEG"
            )
        return super().read(size)


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has; their plugins are loaded, and no others."""
    for module in _PLUGINS.values():
        try:
            import_module(f"PIL.{module}")
        except ImportError:  # AVIF came with Pillow 11.3
            continue
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _why_unknown(content: bytes) -> str:
    """Why Pillow does not open a file: none of the formats, or one of them with a damaged beginning."""
    if not content:
        return "is empty; copy the file again"
    known = [name for name in _formats() if _accepts(name, content[:16])]
    if known:
        return f"has the beginning of {known[0]}, but what follows is damaged; copy the file again"
    return f"is not an image file of the kinds that are read ({', '.join(_formats())}); save it as PNG or JPEG"


def _accepts(name: str, prefix: bytes) -> bool:
    accept = Image.OPEN[name][1]
    return accept is not None and accept(prefix) is True
