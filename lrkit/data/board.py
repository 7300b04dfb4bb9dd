"""Boards of the trail data set: rooms tinted by their number, a handwritten sign in each, drawn as pictures.

Place in the pipeline: scans -> board -> trail -> `Sample`. The kinds:

    main   one picture, 2 x 5 rooms in number order
    long   the same board (its trails are longer)
    faint  one picture, 3 x 5 tiles: the ten rooms in number order between five grey distractors; weak ink and noise
    wide   two pictures of 2 x 3 rooms each, twelve rooms (signs show 0 to 9)
    woven  one picture, 2 x 5 rooms of four tiles each, the sign in one of them, woven of light and dark pixels in equal
           parts: a picture of half the size shows the rooms and none of the signs
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from lrkit.config import Config
from lrkit.data.scans import TILE, Split, draw_scans, plain_placement, random_placement, scan_bank
from lrkit.errors import UnknownNameError, did_you_mean

BoardKind = Literal["main", "long", "faint", "wide", "woven"]

MERGED_PATCH = 16
"""Pixels per side of one visual token of the tiny model."""
NOTHING = -1
"""Room number and digit of a distractor tile."""

NUM_ROOMS: dict[BoardKind, int] = {"main": 10, "long": 10, "faint": 10, "wide": 12, "woven": 10}
"""Rooms of each kind of board; they are numbered from 0."""

_NUM_DISTRACTORS = 5
_WOVEN_SIDE = 2
"""Tiles per side of a room on woven boards."""
WEAVE = (np.indices((TILE, TILE)).sum(0) % 2 * 2 - 1).astype(np.float32)
"""Light and dark pixels in turn; any two neighbours sum to 0."""
WOVEN_TINT, WOVEN_CONTRAST = 0.5, 0.25
"""Of woven boards, as shares of those of main boards."""
_GREY = 0.4
# A room is recognized by its look: red tells number // 5, blue number % 5, in steps that no arrangement changes.
_TINTS = np.array([[0.35 * (n // 5), 0.05, 0.2 * (n % 5)] for n in range(12)] + [[_GREY] * 3], np.float32)


Share = Annotated[float, Field(ge=0.0, le=1.0)]


class TrailSettings(Config):
    """How boards are drawn. Augmentation applies to training scans only."""

    split_seed: int = Field(default=0, ge=0)
    """Decides which scan belongs to which split."""
    shift: float = Field(default=1.0, ge=0.0, le=16.0)
    """Augmentation: largest shift of a scan, pixels each way."""
    rotation: float = Field(default=12.0, ge=0.0, le=180.0)
    """Augmentation: largest turn, degrees."""
    scale: float = Field(default=0.12, ge=0.0, lt=1.0)
    """Augmentation: largest relative change of height and of width."""
    train_ink: tuple[Share, Share] = (0.45, 1.0)
    """Augmentation: range of the ink's opacity."""
    train_noise: tuple[Share, Share] = (0.0, 0.08)
    """Augmentation: range of the noise's standard deviation (pixels run from 0 to 1)."""
    faint_ink: Share = 0.45
    """Opacity of the ink on faint boards."""
    faint_noise: Share = 0.08
    """Standard deviation of the noise on faint boards."""

    @model_validator(mode="after")
    def _ranges_in_order(self) -> Self:
        for name, (low, high) in (("train_ink", self.train_ink), ("train_noise", self.train_noise)):
            if low > high:
                raise ValueError(f"{name} is {low} to {high}; give the smaller value first")
        return self


@dataclass(frozen=True)
class Board:
    """One board: its pictures, and what is where."""

    pictures: tuple[np.ndarray, ...]
    """One (height, width, 3) uint8 array per picture."""
    rooms: tuple[np.ndarray, ...]
    """One (rows, columns) array per picture: the number of the room that each tile belongs to, or `NOTHING`."""
    signs: tuple[np.ndarray, ...]
    """One (rows, columns) array per picture: the digit shown in each tile, or `NOTHING`."""
    scans: tuple[int, ...]
    """Which scans were used, as rows of `load_digits`."""

    @property
    def next_room(self) -> dict[int, int]:
        """Room -> the digit on its sign."""
        rooms, signs = (np.concatenate([tiles.ravel() for tiles in part]).tolist() for part in (self.rooms, self.signs))
        return {room: sign for room, sign in zip(rooms, signs, strict=True) if NOTHING not in (room, sign)}

    @property
    def room_boxes(self) -> dict[int, tuple[int, tuple[float, float, float, float]]]:
        """Room -> its picture and (left, top, right, bottom) in it, in pixels."""
        found: dict[int, tuple[int, tuple[float, float, float, float]]] = {}
        for picture, rooms in enumerate(self.rooms):
            for room in np.unique(rooms[rooms != NOTHING]).tolist():
                rows, columns = np.nonzero(rooms == room)
                corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                left, top, right, bottom = (float(side * TILE) for side in corners)
                found[room] = picture, (left, top, right, bottom)
        return found

    @property
    def token_rooms(self) -> np.ndarray:
        """(num_visual_tokens,) int64: the room each visual token lies in, or `NOTHING`."""
        return np.concatenate([_per_token(rooms) for rooms in self.rooms])

    @property
    def token_digits(self) -> np.ndarray:
        """(num_visual_tokens,) int64: the digit each visual token is a part of, or `NOTHING`."""
        return np.concatenate([_per_token(signs) for signs in self.signs])

    def images(self) -> tuple[Image.Image, ...]:
        """The pictures as Pillow images."""
        return tuple(Image.fromarray(picture) for picture in self.pictures)


def draw_board(
    split: Split,
    kind: BoardKind,
    rng: np.random.Generator,
    settings: TrailSettings | None = None,
    signs: Mapping[int, int] | None = None,
) -> Board:
    """A random board with scans of `split`; `signs` decides what hangs in some rooms (room -> digit).

    Raises:
        UnknownNameError: no such kind of board.
    """
    settings = settings or TrailSettings()
    rooms = _arrange(kind, rng)
    numbers = rooms.ravel()
    digits = rng.integers(0, 10, numbers.size)
    for room, digit in (signs or {}).items():
        digits[numbers == room] = digit
    bank = scan_bank(split, settings.split_seed)
    chosen = bank.pick(digits, rng)
    scans = bank.pixels[chosen]
    is_room = numbers != NOTHING
    if not is_room.all():
        scans[~is_room] = _clutter(scans[~is_room], rng)
    hung = _hung(rooms, rng).ravel() if kind == "woven" else is_room
    tiles = _shade(scans * hung[:, None, None], numbers, kind, split == "train", rng, settings)
    shown = np.where(hung, digits, NOTHING).reshape(rooms.shape)
    return Board(_tile_pictures(tiles, rooms), tuple(rooms), tuple(shown), tuple(bank.ids[chosen].tolist()))


def _shade(
    scans: np.ndarray,
    numbers: np.ndarray,
    kind: BoardKind,
    augment: bool,
    rng: np.random.Generator,
    settings: TrailSettings,
) -> np.ndarray:
    """(num_tiles, 16, 16, 3) uint8: each scan in white ink on the tint of its room."""
    num_tiles = len(scans)
    if augment:
        placement = random_placement(num_tiles, rng, settings.shift, settings.rotation, settings.scale)
        ink = rng.uniform(*settings.train_ink, (num_tiles, 1, 1)).astype(np.float32)
        noise = rng.uniform(*settings.train_noise)
    else:
        placement, ink, noise = plain_placement(num_tiles), np.ones(1, np.float32), 0.0
    if kind == "faint":
        ink, noise = np.minimum(ink, np.float32(settings.faint_ink)), max(noise, settings.faint_noise)
    tint = _TINTS[numbers][:, None, None]
    drawn = (ink * draw_scans(scans, placement))[..., None]
    if kind == "woven":
        # As main boards, but dark at each second pixel. Around the middle, so that a dark pixel may be as far below the
        # tint as a light one above it; everything that varies within a tile has a quarter of the contrast.
        tiles = (1 - WOVEN_TINT) / 2 + WOVEN_TINT * tint + WOVEN_CONTRAST * drawn * (1 - tint) * WEAVE[..., None]
        noise *= WOVEN_CONTRAST
    else:
        tiles = tint + drawn * (1 - tint)
    if noise > 0:
        tiles += rng.standard_normal(tiles.shape, np.float32) * np.float32(noise)
    return (tiles.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _tile_pictures(tiles: np.ndarray, rooms: np.ndarray) -> tuple[np.ndarray, ...]:
    num_pictures, rows, columns = rooms.shape
    pictures = tiles.reshape(num_pictures, rows, columns, TILE, TILE, 3).swapaxes(2, 3)
    return tuple(pictures.reshape(num_pictures, rows * TILE, columns * TILE, 3))


def _arrange(kind: BoardKind, rng: np.random.Generator) -> np.ndarray:
    """(pictures, rows, columns) room numbers."""
    if kind not in NUM_ROOMS:
        raise UnknownNameError(
            f"board kind {kind!r} is unknown; allowed: {', '.join(NUM_ROOMS)}{did_you_mean(str(kind), NUM_ROOMS)}"
        )
    if kind == "wide":
        return np.arange(12).reshape(2, 2, 3)
    if kind == "woven":
        return _spread(np.arange(10).reshape(1, 2, 5))
    if kind != "faint":
        return np.arange(10).reshape(1, 2, 5)
    tiles = np.full(10 + _NUM_DISTRACTORS, NOTHING)
    tiles[np.sort(rng.permutation(tiles.size)[:10])] = np.arange(10)
    return tiles.reshape(1, 3, 5)


def _hung(rooms: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """True for the one tile of each room that its sign hangs in."""
    side = _WOVEN_SIDE
    down, right = rng.integers(0, side, (2, rooms.shape[0], rooms.shape[1] // side, rooms.shape[2] // side))
    row, column = np.indices(rooms.shape[1:])
    return (row % side == _spread(down)) & (column % side == _spread(right))


def _spread(rooms: np.ndarray) -> np.ndarray:
    """A value per room -> one per tile of woven boards."""
    return rooms.repeat(_WOVEN_SIDE, 1).repeat(_WOVEN_SIDE, 2)


def _clutter(scans: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distractors: each scan stays or, as often, has its pixels shuffled."""
    inner = scans[:, 1:-1, 1:-1].reshape(len(scans), -1)
    shuffled = rng.permuted(inner, axis=1)
    kept = np.where(rng.random((len(scans), 1)) < 0.5, inner, shuffled)
    return np.pad(kept.reshape(-1, scans.shape[1] - 2, scans.shape[2] - 2), ((0, 0), (1, 1), (1, 1)))


def _per_token(tiles: np.ndarray) -> np.ndarray:
    per_side = TILE // MERGED_PATCH
    return tiles.repeat(per_side, 0).repeat(per_side, 1).ravel().astype(np.int64)
