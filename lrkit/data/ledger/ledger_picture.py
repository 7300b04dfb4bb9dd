"""A ledger as a picture: printed in several typefaces, numbers also by hand; and what each visual token shows.

Place in the pipeline: `Ledger` -> `Drawn` -> `Sample`. Text lies anywhere, not on the raster of visual tokens. The
label of a visual token is what a reader would say there: the visual token in which a word begins says the word, those
in which a number begins say its digits one after the other, all others say nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lrkit.data.ledger.ledger_rows import Ledger
from lrkit.data.ledger.ledger_words import BLANK, CLASS_OF, HEADS
from lrkit.data.scans import TILE, Split, draw_scans, plain_placement, random_placement, scan_bank
from lrkit.errors import require

CELL = 16
"""Pixels per side of a visual token."""
TYPEFACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Oblique", "cmss10")
"""What tables are printed in; matplotlib carries them."""
UNSEEN_TYPEFACES = ("STIXGeneral", "cmr10", "DejaVuSerif-Bold")
"""Kept for sets that no training sees."""
_SIZES = (12, 13, 14, 15)
_DIGIT_PITCH = 10
"""Pixels from one printed digit to the next; two digits then never lie in one visual token."""
_SCAN_PITCH = 13
_TOLD_BLANKS = 0.3
"""Share of the visual tokens without a word that are labelled, in training."""
_LINE = 18
"""Height of a printed text, pixels."""
_GAP = 2 * CELL
"""Least distance between the beginnings of two columns beyond the text of the first."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Drawn:
    """A picture and what is where in it."""

    picture: Image.Image
    boxes: dict[tuple[int, int], Box]
    """(row, column) -> (left, top, right, bottom) of a cell, pixels; the titles are row -1."""
    labels: np.ndarray
    """(visual tokens,) int64: class of each (lrkit/data/ledger/ledger_words.py), row by row; -1 where none is told."""


@dataclass(frozen=True)
class _Look:
    """How one ledger is drawn."""

    typeface: tuple[str, int]
    """Name and size."""
    by_hand: bool
    ink: np.ndarray
    paper: np.ndarray
    lines: bool
    pitch: int
    """Pixels from row to row."""
    left: int
    top: int


def draw_ledger_picture(ledger: Ledger, split: Split, rng: np.random.Generator, typefaces: Sequence[str]) -> Drawn:
    """The ledger in one of `typefaces`; `split` says whose handwriting.

    Raises:
        MissingExtraError: matplotlib or scikit-learn, which carry typefaces and handwriting, are not installed.
    """
    look = _look(rng, typefaces)
    columns = [[*HEADS[:1], *ledger.names], [*HEADS[1:], *(ledger.names[row] for row in ledger.next_rows)]]
    columns += [[goods, *map(str, numbers)] for goods, numbers in zip(ledger.goods, ledger.numbers, strict=True)]
    starts, width = _starts(columns, look)
    height = _whole(look.top + len(columns[0]) * look.pitch + 4)
    page = np.broadcast_to(look.paper, (height, width, 3)).astype(np.float32)
    ink = np.zeros((height, width), np.float32)
    labels = np.full((height // CELL, width // CELL), CLASS_OF[BLANK], np.int64)
    boxes: dict[tuple[int, int], Box] = {}
    for column, texts in enumerate(columns):
        for row, text in enumerate(texts):
            left, top = starts[column], look.top + row * look.pitch
            _write(ink, text, left, top, look, split, rng)
            boxes[row - 1, column] = (left - 4.0, float(top), starts[column + 1] - 4.0, float(top + look.pitch))
            for place, piece in enumerate(_pieces(text)):
                labels[(top + look.pitch // 2) // CELL, left // CELL + place] = CLASS_OF[piece]
    if split == "train":  # else most of what the tower is told is that there is nothing
        labels[(labels == CLASS_OF[BLANK]) & (rng.random(labels.shape) > _TOLD_BLANKS)] = -1
    if look.lines:
        _rule(ink, look, starts, len(columns[0]))
    page += ink[..., None] * (look.ink - page)
    page += rng.standard_normal(page.shape, np.float32) * np.float32(rng.uniform(0, 0.05))
    picture = Image.fromarray((page.clip(0, 1) * 255 + 0.5).astype(np.uint8))
    return Drawn(picture, boxes, labels.ravel())


def _look(rng: np.random.Generator, typefaces: Sequence[str]) -> _Look:
    typeface = (typefaces[int(rng.integers(len(typefaces)))], int(rng.choice(_SIZES)))
    paper = rng.uniform(0.75, 1.0, 3).astype(np.float32)
    ink = rng.uniform(0.0, 0.35, 3).astype(np.float32)
    if rng.random() < 0.2:
        paper, ink = 1 - paper, 1 - ink
    pitch, left, top = int(rng.integers(17, 21)), int(rng.integers(4, 16)), int(rng.integers(1, 12))
    return _Look(typeface, bool(rng.random() < 0.5), ink, paper, bool(rng.random() < 0.4), pitch, left, top)


@cache
def _printed(text: str, typeface: str, size: int) -> np.ndarray:
    """Ink of a text, (rows, columns) float32 in 0..1; made once, as the same words come again and again."""
    font = _font(typeface, size)
    drawn = Image.new("L", (int(font.getlength(text)) + 2, _LINE))
    ImageDraw.Draw(drawn).text((0, _LINE / 2), text, fill=255, font=font, anchor="lm")
    return np.asarray(drawn, np.float32) / 255


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    folder = Path(str(require("matplotlib", "analyze").get_data_path())) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"{name}.ttf", size)


def _starts(columns: Sequence[Sequence[str]], look: _Look) -> tuple[list[int], int]:
    """Where each column begins, and one behind the last; and the width of the picture, whole visual tokens."""
    starts = [look.left]
    for texts in columns:
        starts.append(starts[-1] + max(_width(text, look) for text in texts) + _GAP // 2)
        starts[-1] = max(starts[-1], starts[-2] + _GAP)
    return starts, _whole(starts[-1])


def _width(text: str, look: _Look) -> int:
    if text.isdigit():
        return len(text) * (_SCAN_PITCH if look.by_hand else _DIGIT_PITCH)
    return _printed(text, *look.typeface).shape[1]


def _pieces(text: str) -> Iterator[str]:
    """What is said of a text, token by token."""
    yield from text if text.isdigit() else (text,)


def _write(
    ink: np.ndarray, text: str, left: int, top: int, look: _Look, split: Split, rng: np.random.Generator
) -> None:
    if text.isdigit() and look.by_hand:
        _write_by_hand(ink, text, left, top, look, split, rng)
        return
    for place, piece in enumerate(_pieces(text)):
        tile = _printed(piece, *look.typeface)
        _onto(ink, tile, left + place * _DIGIT_PITCH, top + (look.pitch - len(tile)) // 2)


def _write_by_hand(
    ink: np.ndarray, text: str, left: int, top: int, look: _Look, split: Split, rng: np.random.Generator
) -> None:
    bank = scan_bank(split)
    rows = bank.pick(np.array([int(digit) for digit in text]), rng)
    placement = random_placement(len(rows), rng, 1.0, 12.0, 0.12) if split == "train" else plain_placement(len(rows))
    for place, tile in enumerate(draw_scans(bank.pixels[rows], placement)):
        _onto(ink, tile, left + place * _SCAN_PITCH - 1, top + (look.pitch - TILE) // 2)


def _onto(ink: np.ndarray, tile: np.ndarray, left: int, top: int) -> None:
    """Lays a tile over the ink; what reaches over the edge is cut."""
    left, tile, top = max(0, left), tile[max(0, -top) :], max(0, top)
    height, width = min(tile.shape[0], ink.shape[0] - top), min(tile.shape[1], ink.shape[1] - left)
    part = ink[top : top + height, left : left + width]
    np.maximum(part, tile[:height, :width], out=part)


def _rule(ink: np.ndarray, look: _Look, starts: Sequence[int], rows: int) -> None:
    """Thin lines between rows and columns."""
    for row in range(rows + 1):
        ink[min(look.top + row * look.pitch, len(ink) - 1), max(0, look.left - 4) :] = 0.4
    for start in starts[:-1]:
        ink[look.top : look.top + rows * look.pitch, max(0, start - 4)] = 0.4


def _whole(pixels: int) -> int:
    return -(-pixels // CELL) * CELL
