"""Shrinks pictures that are above a limit, by the model's own resizing rule. The answer says so.

Place in the pipeline: `Processor.encode_prompt` -> `fit_pictures` -> a geometry per picture -> `resize_and_cut`; what
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
from lrkit.families.qwen2_vl.geometry import ImageGeometry, resized_size

LimitName = Literal["max_pixels", "max_patches", "max_prompt_tokens"]
_NO_LIMIT = 1 << 60
PHOTO = (4000, 3000)
"""Width and height of a photo of 12 megapixels."""


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
        """For a JSON report."""
        return asdict(self)


@dataclass(frozen=True)
class Fitted:
    """The pictures of one prompt, within all limits where that is possible."""

    geometries: list[ImageGeometry]
    """One per picture."""
    resized: list[Resized]
    """Those that a limit made smaller."""


def fit_pictures(
    sizes: Sequence[tuple[int, int]], geometry: ImageGeometry, limits: Limits | None = None, text_tokens: int = 0
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
    if limits is not None:
        by_patches = limits.max_patches // geometry.merge_size**2
        by_tokens = limits.max_prompt_tokens - text_tokens
        name = "max_patches" if by_patches <= by_tokens else "max_prompt_tokens"
        budget = min(by_patches, by_tokens)
        if len(sizes) <= budget < sum(natural):
            geometries = _share(sizes, natural, geometry, budget)
    return Fitted(geometries, _report(sizes, geometry, geometries, name))


def _natural(number: int, size: tuple[int, int], geometry: ImageGeometry, count: int) -> int:
    """Visual tokens of a picture by its own; a complaint names which of several it is about."""
    try:
        return _tokens(size, geometry)
    except DataError as error:
        if count == 1:
            raise
        raise DataError(str(error).replace("the picture", f"picture {number}", 1)) from error


def _share(
    sizes: Sequence[tuple[int, int]], natural: Sequence[int], geometry: ImageGeometry, budget: int
) -> list[ImageGeometry]:
    """One geometry per picture, from the smallest on: what a picture leaves of its share goes to the larger ones."""
    geometries = [geometry] * len(sizes)
    left = budget
    order = sorted(range(len(sizes)), key=lambda index: natural[index])
    for done, index in enumerate(order):
        share = left // (len(sizes) - done)
        if natural[index] > share:
            geometries[index] = _within(sizes[index], geometry, share)
        left -= _tokens(sizes[index], geometries[index])
    return geometries


def _within(size: tuple[int, int], geometry: ImageGeometry, tokens: int) -> ImageGeometry:
    """The geometry with the largest max_pixels by which a picture makes at most so many visual tokens.

    The rule rounds, and keeps one token on the shorter side: so what fits is found by trying.
    """
    fits, too_large = 1, max(2, tokens * geometry.factor**2 + 1)
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        if _tokens(size, _limited(geometry, middle)) <= tokens:
            fits = middle
        else:
            too_large = middle
    return _limited(geometry, fits)


def _limited(geometry: ImageGeometry, max_pixels: int) -> ImageGeometry:
    # Unlike ImageGeometry.with_max_pixels, down to a single pixel: the rule still leaves a token.
    return geometry.model_copy(update={"max_pixels": max_pixels, "min_pixels": min(geometry.min_pixels, max_pixels)})


def _tokens(size: tuple[int, int], geometry: ImageGeometry) -> int:
    width, height = resized_size(*size, geometry)
    return (width // geometry.factor) * (height // geometry.factor)


def _report(
    sizes: Sequence[tuple[int, int]], geometry: ImageGeometry, fitted: Sequence[ImageGeometry], name: LimitName
) -> list[Resized]:
    """The pictures that would be larger without any limit: rounding to whole tokens is no shrinking."""
    found: list[Resized] = []
    for index, (size, used) in enumerate(zip(sizes, fitted, strict=True)):
        seen, free = resized_size(*size, used), resized_size(*size, geometry, _NO_LIMIT)
        if seen[0] * seen[1] < free[0] * free[1]:
            found.append(Resized(index, size, seen, "max_pixels" if used is geometry else name))
    return found


def photo_sizes(
    geometry: ImageGeometry, limits: Limits, text_tokens: int = 64
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) in pixels of a 12-megapixel photo as the checkpoint alone would see it, and within `limits`."""
    (fitted,) = fit_pictures([PHOTO], geometry, limits, text_tokens).geometries
    return resized_size(*PHOTO, geometry), resized_size(*PHOTO, fitted)


def photo_warning(geometry: ImageGeometry, limits: Limits, own: ImageGeometry | None = None) -> str | None:
    """One line for whoever exports: how much smaller than by the checkpoint's own image processor (`own`; None: the
    bundle's) a photo will be seen; None where it is not."""
    before = resized_size(*PHOTO, own or geometry)
    _, after = photo_sizes(geometry, limits)
    if after == before:
        return None
    seen, kept = (width * height // geometry.factor**2 for width, height in (before, after))
    return (
        f"photos will be shrunk: one of 12 megapixels, {before[0]} x {before[1]} pixels ({seen:,} visual tokens) by "
        f"the checkpoint's max_pixels, to {after[0]} x {after[1]} ({kept:,} tokens) by this bundle's limits; raise "
        "limits.max_patches and limits.max_prompt_tokens (or max_pixels) to keep more"
    )
