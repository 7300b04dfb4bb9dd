"""The pictures of a row: whichever way a data set stores them, as what `load_image` takes. Torch-free.

Place in the pipeline: a row's picture column -> `pictures_of` -> `Sample.images`; `StoredPicture` leaves the bytes in
the data set until they are decoded, so that a million rows take no memory.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from PIL import Image

from lrkit.data.jsonl_line import MAX_IMAGES, why_no_file
from lrkit.errors import DataError, shown
from lrkit.pictures.input import ImageSource, kind_of

_ENDINGS = (".jpg", ".png", ".jpeg", ".webp", ".gif", ".bmp", ".JPG", ".PNG")
_GIVEN = "give bytes, a path, a struct of bytes and path, or a list of these"


@dataclass(frozen=True)
class PictureRows:
    """An open data set, whose rows can be read at any time by any thread."""

    dataset: Any = field(repr=False)
    """A data set of the package datasets, in Arrow's format."""
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """A row as its columns are named."""
    columns: tuple[str, ...]
    """Those with pictures."""
    digest: str = ""
    """Names the data set among others."""

    def stored(self, images: Sequence[ImageSource], row: Mapping[str, Any], number: int) -> tuple[ImageSource, ...]:
        """Pictures of a prepared row, with those whose bytes the data set holds left there."""
        places = self._places(row)
        kept: list[ImageSource] = []
        for image in images:
            column, place = next(places)
            # It has what is asked of an open file: `read`.
            left = cast(ImageSource, StoredPicture(self, number, column, place))
            kept.append(left if isinstance(image, bytes) else image)
        return tuple(kept)

    def _places(self, row: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
        for column in self.columns:
            value: Any = row.get(column)
            if isinstance(value, list):
                yield from ((column, index) for index in range(len(value)))
            elif value is not None:
                yield column, None


@dataclass(frozen=True)
class StoredPicture:
    """Bytes of a picture within an open data set."""

    rows: PictureRows = field(repr=False, compare=False)
    row: int
    """Index in it."""
    column: str
    place: int | None = None
    """Index in the row's list of pictures; None where it is no list."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal keys, equal pictures."""
        return self.rows.digest, self.row, self.column, self.place

    def read(self, size: int = -1) -> bytes:
        """The bytes of the image file, at most `size` of them.

        Raises:
            DataError: they are no longer there.
        """
        value: Any = self.rows.prepare(self.rows.dataset[self.row].to_pylist()[0])[self.column]
        value = value if self.place is None else value[self.place]
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(content, bytes):
            raise DataError("the picture is no longer in the data set; start again")
        return content if size < 0 else content[:size]


class PicturesByName(Protocol):
    """Where the names of pictures lead."""

    def find(self, name: str) -> ImageSource:
        """The picture of a path or an id. Raises `DataError` where there is none."""
        ...


class PictureTable:
    """Pictures in rows of their own, each with its id, as GQA publishes them on the hub."""

    def __init__(self, rows: PictureRows, ids: Sequence[Any], label: Path) -> None:
        """`ids`: of each row of `rows`, in order. The first of `rows.columns` holds the picture."""
        self._rows, self._label = rows, label
        self._numbers = {str(name): number for number, name in enumerate(ids)}

    def find(self, name: str) -> ImageSource:
        number = self._numbers.get(name)
        if number is None:
            raise DataError(f"picture {shown(name, 60)} is no id in {self._label}; check config and split")
        return cast(ImageSource, StoredPicture(self._rows, number, self._rows.columns[0]))


@dataclass(frozen=True)
class PictureFolders:
    """Where paths and ids of pictures lead."""

    base: Path
    """The folder of the data file, or the one that was named."""
    below: tuple[str, ...] = ()
    """Folders in it where pictures lie whose name is an id."""

    def find(self, name: str) -> Path:
        """The file of a path or an id.

        Raises:
            DataError: there is none.
        """
        if name.startswith(("http://", "https://", "data:")):
            raise DataError(f"picture {shown(name, 60)} is no path; save the picture and give its path")
        reason = why_no_file(self.base, name)
        if reason is None:
            return self.base / name
        for folder in (self.base, *(self.base / folder for folder in self.below)):
            for ending in ("", *_ENDINGS):
                if why_no_file(folder, name + ending) is None:
                    return folder / (name + ending)
        raise DataError(f"picture {shown(name, 300)} {reason}; name their folder as pictures")


def pictures_of(value: Any, folders: PicturesByName) -> list[ImageSource]:
    """The pictures of one column of a row; none where it is null.

    Raises:
        DataError: it is something else than pictures, there are more than `MAX_IMAGES`, or a file is not there.
    """
    if value is None:
        return []
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)
    given: Sequence[Any] = value if several else [value]
    if len(given) > MAX_IMAGES:
        raise DataError(f"there are {len(given)} pictures; at most {MAX_IMAGES} are taken")
    return [_one(item, folders) for item in given]


def _one(value: Any, folders: PicturesByName) -> ImageSource:
    if isinstance(value, Image.Image):
        return value
    path: Any = value
    if isinstance(value, Mapping):
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes | bytearray):
        if not value:
            raise DataError("a picture has no bytes; take the row out")
        return bytes(value)
    if isinstance(path, int) and not isinstance(path, bool):
        path = str(path)  # the id of a picture
    if isinstance(path, str | os.PathLike) and str(path):
        return folders.find(str(path))
    if path is None:
        raise DataError("a picture has neither bytes nor a path; take the row out")
    raise DataError(f"a picture is {'an empty path' if path == '' else kind_of(path)}; {_GIVEN}")
