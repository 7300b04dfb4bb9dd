"""Fonts for a drawn trace: Pillow's own, then those of the system for the characters that it lacks. Pillow only.

Place in the pipeline: trace_text.py -> `Fonts` -> text drawn in any script that a font here has. Characters that
no font has become a word, "[8 characters]", never a silent box. Pillow's raqm shapes right-to-left scripts.
"""

import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont, features

from lrkit.errors import DataError, clean, one_line

_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
_MOST_FONTS = 400
"""Files of the system that are looked into."""
_MOST_CHARACTERS = 64
"""Different characters by which a font is chosen."""
_PROBE_SIZE = 16
_NO_CHARACTER = "\U0010ffff"
"""Never has a glyph: what a font draws for it is what it draws for all it lacks."""
_STYLES = re.compile("bold|italic|oblique|condensed|light|thin|black|mono|serif|math", re.IGNORECASE)


class Fonts:
    """A chain of fonts for given texts; the first that has a character draws it."""

    def __init__(self, texts: Iterable[str], font: "os.PathLike[str] | str | None" = None) -> None:
        """Looks for fonts of the system only where Pillow's own (or `font`, a file) lacks a character.

        Raises:
            DataError: `font` is no font file that can be read.
        """
        needed = {one for text in texts for one in text if not _is_drawn_with_its_neighbour(one)}
        self._chain: list[str | None] = [None] if font is None else [_checked(font), None]
        left = {one for one in needed if not any(has_glyph(name, one) for name in self._chain)}
        for name in system_fonts() if left else ():
            sample = sorted(left)[:_MOST_CHARACTERS]
            if any(has_glyph(name, one) for one in sample):
                self._chain.append(name)
                left = {one for one in left if not has_glyph(name, one)}
            if not left:
                break
        self._missing = left

    def readable(self, text: str) -> tuple[str, int]:
        """The text with a word for each run of characters that no font has, and how many those are."""
        count, parts = 0, list[str]()
        for lacking, run in groupby(text, key=lambda one: one in self._missing):
            piece = "".join(run)
            count += len(piece) if lacking else 0
            parts.append(f"[{len(piece)} character{'s' if len(piece) > 1 else ''}]" if lacking else piece)
        return "".join(parts), count

    def length(self, text: str, size: int) -> float:
        """Pixels that a line takes."""
        return sum(_load(name, size).getlength(run) for name, run in self._runs(text))

    def draw(
        self, canvas: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, fill: tuple[int, int, int]
    ) -> None:
        """Draws a line with its left end at `place`; baselines of different fonts are aligned."""
        left, top = place
        for name, run in self._runs(text):
            font = _load(name, size)
            canvas.text((left, top + size), run, font=font, fill=fill, anchor="ls")
            left += font.getlength(run)

    def _runs(self, text: str) -> Iterator[tuple[str | None, str]]:
        """Pieces of a line with their font: one piece where one font has it all, so that its direction is kept."""
        for name in self._chain:
            if all(_is_drawn_with_its_neighbour(one) or has_glyph(name, one) for one in text):
                yield name, text
                return
        chosen = self._chain[0]
        pieces: list[tuple[str | None, str]] = []
        for one in text:
            if not _is_drawn_with_its_neighbour(one):
                chosen = next((name for name in self._chain if has_glyph(name, one)), self._chain[0])
            pieces.append((chosen, one))
        for name, run in groupby(pieces, key=lambda piece: piece[0]):
            yield name, "".join(one for _, one in run)


def is_right_to_left(text: str) -> bool:
    """Whether it holds letters of Arabic, Hebrew or another script that runs to the left."""
    return any(unicodedata.bidirectional(one) in ("R", "AL") for one in text)


def can_shape() -> bool:
    """Whether this Pillow joins and orders the letters of such scripts."""
    return bool(features.check("raqm"))


@lru_cache(maxsize=1)
def system_fonts() -> tuple[str, ...]:
    """Font files of the system; plain ones first, then bold, slanted and other styles."""
    found = islice((file for folder in _folders() for file in _font_files(folder)), 10 * _MOST_FONTS)
    ordered = sorted(found, key=lambda file: (len(_STYLES.findall(file.stem)), len(file.stem), file.name))
    return tuple(str(file) for file in ordered[:_MOST_FONTS])


def _folders() -> Sequence[Path]:
    """Where fontconfig, macOS and Windows keep fonts."""
    home = Path.home()
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share").split(":")
    own = Path(os.environ.get("XDG_DATA_HOME", home / ".local/share"))
    return [*(Path(folder) / "fonts" for folder in shared if folder), own / "fonts", home / ".fonts"]


def _font_files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names if name.lower().endswith(_SUFFIXES))


def _checked(font: "os.PathLike[str] | str") -> str:
    path = os.fspath(font)
    try:
        if not os.path.isfile(path):
            raise OSError("no such file")
        ImageFont.truetype(path, _PROBE_SIZE).getmask("a")
    except Exception as error:  # FreeType and the file system raise many kinds
        reason = one_line(error, 80)
        raise DataError(f"{clean(path)}: is no font that can be read ({reason}); give a .ttf or .otf file") from error
    return path


def _is_drawn_with_its_neighbour(one: str) -> bool:
    """Spaces, marks on the letter before, joiners and line ends need no glyph of their own."""
    return one.isspace() or unicodedata.category(one) in ("Mn", "Me", "Cf", "Cc")


@lru_cache(maxsize=16384)
def has_glyph(name: str | None, one: str) -> bool:
    """Whether a font (None: Pillow's own) draws a character as something else than what it lacks."""
    drawn = _drawn(name, one)
    return drawn is not None and drawn != _drawn(name, _NO_CHARACTER)


@lru_cache(maxsize=1024)
def _drawn(name: str | None, one: str) -> tuple[bytes, tuple[int, int], float] | None:
    """Pixels, size and width of a character; None where the font cannot be used."""
    try:
        font = _load(name, _PROBE_SIZE, basic=True)
        mask: Any = font.getmask(one, mode="L")
        return bytes(mask), mask.size, font.getlength(one)
    except Exception:  # a broken font, or one of coloured pictures in fixed sizes
        return None


@lru_cache(maxsize=64)
def _load(name: str | None, size: int, basic: bool = False) -> ImageFont.FreeTypeFont:
    if name is None:
        own = ImageFont.load_default(size=size)
        assert isinstance(own, ImageFont.FreeTypeFont), "Pillow gives a scalable font for a size"
        return own
    return ImageFont.truetype(name, size, layout_engine=ImageFont.Layout.BASIC if basic else None)
