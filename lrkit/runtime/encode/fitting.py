"""Shrinks pictures that are above a limit, by the model's own resizing rule. The answer says so.

Place in the pipeline: `Processor.encode_prompt` -> `fit_pictures` -> a geometry per picture -> `Geometry.cut`; what
was shrunk ends up in `Answer.resized`. Torch-free.

Limits: the image processor's max_pixels holds for each picture. A bundle's max_patches and max_prompt_tokens hold for
all pictures of a prompt together. They are shared fairly: small pictures keep their size, and the others get the same
number of visual tokens.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lrkit.contract.bundle.manifest import Limits
from lrkit.errors import DataError
from lrkit.families.protocols import Geometry, Grid, Size

LimitName = Literal["max_pixels", "max_patches", "max_prompt_tokens"]
_NO_LIMIT = 1 << 60
PHOTO = (4000, 3000)
"""Width and height of a photo of 12 megapixels."""
_PHOTO_TEXT = 64
"""Tokens of a question about it."""


@dataclass(frozen=True)
class Resized:
    """A picture that the model saw smaller than it was given."""

    image: int
    """Which of the question's pictures, from 0."""
    original: tuple[int, int]
    """(width, height) in pixels as given, upright."""
    used: tuple[int, int]
    """(width, height) in pixels as the model saw it."""
    limit: LimitName
    """What it was shrunk for."""

    def __str__(self) -> str:
        """For a note: "picture 1 from 4000 x 3000 to 1120 x 840 pixels (max_patches)"."""
        before, after = (f"{width} x {height}" for width, height in (self.original, self.used))
        return f"picture {self.image + 1} from {before} to {after} pixels ({self.limit})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON report."""
        return asdict(self)


@dataclass(frozen=True)
class Fitted:
    """The pictures of one prompt, within all limits where that is possible."""

    geometries: list[Geometry]
    """One per picture."""
    resized: list[Resized]
    """Those that a limit made smaller."""


def fit_pictures(
    sizes: Sequence[Size], geometry: Geometry, limits: Limits | None = None, text_tokens: int = 0
) -> Fitted:
    """Geometries by which pictures of these sizes (width, height) fit beside `text_tokens` tokens of text.

    Where nothing is above a limit, each is `geometry` itself. Where even pictures of one visual token are too many,
    they stay as they are, for `check_prompt` to refuse.

    Raises:
        DataError: a picture is more than 200 times as long as wide.
    """
    natural = [_natural(index, size, geometry, len(sizes)) for index, size in enumerate(sizes, start=1)]
    geometries = [geometry] * len(sizes)
    name: LimitName = "max_pixels"
    if limits is not None and sizes:
        room = _Room(limits.max_patches, limits.max_prompt_tokens - text_tokens)
        wanted = _Room(sum(one.patches for one in natural), sum(one.tokens for one in natural))
        smallest = _room(geometry, geometry.smallest_grid)
        name = "max_patches" if room.patches * wanted.tokens // wanted.patches <= room.tokens else "max_prompt_tokens"
        if not wanted.fits(room) and smallest.times(len(sizes)).fits(room):
            geometries = _share(sizes, natural, geometry, room)
    return Fitted(geometries, _report(sizes, geometry, geometries, name))


@dataclass(frozen=True)
class _Room:
    """What pictures take, or may take."""

    patches: int
    tokens: int
    """Of the prompt."""

    def fits(self, room: "_Room") -> bool:
        return self.patches <= room.patches and self.tokens <= room.tokens

    def times(self, count: int) -> "_Room":
        return _Room(self.patches * count, self.tokens * count)


def _room(geometry: Geometry, grid: Grid) -> _Room:
    return _Room(geometry.num_patches(grid), geometry.num_prompt_tokens(grid))


def _natural(number: int, size: Size, geometry: Geometry, count: int) -> _Room:
    """What a picture takes by its own; a complaint names which of several it is about."""
    try:
        return _room(geometry, geometry.grid(*size))
    except DataError as error:
        if count == 1:
            raise
        raise DataError(str(error).replace("the picture", f"picture {number}", 1)) from error


def _share(sizes: Sequence[Size], natural: Sequence[_Room], geometry: Geometry, room: _Room) -> list[Geometry]:
    """One geometry per picture, from the smallest on: what a picture leaves of its share goes to the larger ones."""
    geometries = [geometry] * len(sizes)
    left = room
    order = sorted(range(len(sizes)), key=lambda index: natural[index].tokens)
    for done, index in enumerate(order):
        others = len(sizes) - done
        share = _Room(left.patches // others, left.tokens // others)
        if not natural[index].fits(share):
            geometries[index] = geometry.within(sizes[index], share.patches, share.tokens)
        taken = _room(geometry, geometries[index].grid(*sizes[index]))
        left = _Room(left.patches - taken.patches, left.tokens - taken.tokens)
    return geometries


def _report(sizes: Sequence[Size], geometry: Geometry, fitted: Sequence[Geometry], name: LimitName) -> list[Resized]:
    """The pictures that would be larger without any limit: rounding to whole tokens is no shrinking."""
    found: list[Resized] = []
    for index, (size, used) in enumerate(zip(sizes, fitted, strict=True)):
        seen, free = used.seen_size(*size), geometry.with_max_pixels(_NO_LIMIT).seen_size(*size)
        if seen[0] * seen[1] < free[0] * free[1]:
            found.append(Resized(index, size, seen, "max_pixels" if used is geometry else name))
    return found


def photo_warning(geometry: Geometry, limits: Limits, own: Geometry | None = None) -> str | None:
    """One line for whoever exports: how much smaller than by the checkpoint's own image processor (`own`; None: the
    bundle's) a photo will be seen; None where it is not."""
    free = own or geometry
    (fitted,) = fit_pictures([PHOTO], geometry, limits, _PHOTO_TEXT).geometries
    before, after = free.seen_size(*PHOTO), fitted.seen_size(*PHOTO)
    if after == before:
        return None
    seen, kept = (one.num_visual_tokens(one.grid(*PHOTO)) for one in (free, fitted))
    return (
        f"photos will be shrunk: one of 12 megapixels, {before[0]} x {before[1]} pixels ({seen:,} visual tokens) by "
        f"the checkpoint's max_pixels, to {after[0]} x {after[1]} ({kept:,} tokens) by this bundle's limits; raise "
        "limits.max_patches and limits.max_prompt_tokens (or max_pixels) to keep more"
    )
