"""The package `datasets` behind a few functions: what it loads, and each of its errors as one sentence. Torch-free.

Place in the pipeline: row_files.py -> `load` and `about` -> `datasets`. It belongs to the extra `data`.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from lrkit.errors import DataError, LrkitError, clean, one_line, os_sentence, require

EXTRA = "data"
_LOGGERS = ("datasets", "huggingface_hub", "fsspec")


class Named(Protocol):
    """What is opened: a `Place` of row_files.py."""

    @property
    def name(self) -> str: ...
    @property
    def files(self) -> tuple[Path, ...]: ...
    @property
    def folder(self) -> Path | None: ...
    @property
    def config(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...


def load(place: Named, split: str, streaming: bool) -> Any:
    """The rows of a split, in Arrow's format or as a stream of rows; pictures are not decoded.

    Raises:
        DataError: it is not there, cannot be fetched, is damaged, empty, or has no such split or config.
        MissingExtraError: the package is not installed.
    """
    package = require("datasets", EXTRA)
    with opening(place.name):
        if place.folder is not None and _was_saved(place.folder):
            return _saved(package, place, split, streaming)
        builder = _builder(package, place)
        _check_split(builder, place, split)
        if streaming:
            return builder.as_streaming_dataset(split=split).decode(False)
        builder.download_and_prepare()
        return builder.as_dataset(split=split).with_format("arrow")


def about(place: Named, split: str) -> list[str]:
    """The files of a split: local paths, or addresses that hold the revision. Raises as `load`."""
    package = require("datasets", EXTRA)
    with opening(place.name):
        if place.folder is not None and _was_saved(place.folder):
            saved = _folder_of_split(place, split)
            return [str(path) for path in sorted(saved.glob("*.arrow"))]
        builder = _builder(package, place)
        _check_split(builder, place, split)
        return sorted(map(str, (builder.config.data_files or {}).get(split, [])))


def _builder(package: Any, place: Named) -> Any:
    if place.files:
        return package.load_dataset_builder("parquet", data_files={"train": [str(path) for path in place.files]})
    name = place.name if place.folder is None else str(place.folder.resolve())
    return package.load_dataset_builder(name, place.config, revision=place.revision)


def _check_split(builder: Any, place: Named, split: str) -> None:
    known = list(map(str, builder.info.splits or builder.config.data_files or ()))
    if known and split not in known:
        raise DataError(f"{clean(place.name)}: has no split {clean(split)!r}; it has {', '.join(known)}")


def _was_saved(folder: Path) -> bool:
    """By the package itself, onto a disk."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _folder_of_split(place: Named, split: str) -> Path:
    assert place.folder is not None
    if (place.folder / "state.json").is_file():
        return place.folder
    known = sorted(path.parent.name for path in place.folder.glob("*/state.json"))
    if split not in known:
        raise DataError(f"{clean(place.name)}: has no split {clean(split)!r}; it has {', '.join(known) or 'none'}")
    return place.folder / split


def _saved(package: Any, place: Named, split: str, streaming: bool) -> Any:
    rows = package.load_from_disk(str(_folder_of_split(place, split)))
    return rows.to_iterable_dataset().decode(False) if streaming else rows.with_format("arrow")


@contextmanager
def opening(name: str) -> Generator[None]:
    """A context in which the package is silent, and whatever it raises becomes one sentence about the data set."""
    before = [(logger, logger.level) for logger in map(logging.getLogger, _LOGGERS)]
    package = require("datasets", EXTRA)
    bars = package.are_progress_bars_disabled()
    package.disable_progress_bars()
    for logger, _ in before:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except (LrkitError, GeneratorExit):
        raise
    except MemoryError:
        raise
    except Exception as error:  # the package and those below it raise what they like
        raise DataError(_sentence(clean(name), error)) from error
    finally:
        for logger, level in before:
            logger.setLevel(level)
        if not bars:
            package.enable_progress_bars()


def _sentence(name: str, error: Exception) -> str:
    kinds = {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}
    why = one_line(next(iter(_chain(error)), error), 200)
    by_hand = "download its files elsewhere and give their path"
    if kinds & {"GatedRepoError"} or "gated" in str(error).lower():
        return f"{name}: is gated on the hub; accept its terms there and log in (hf auth login), or {by_hand}"
    if kinds & {"ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "TimeoutException"}:
        return f"{name}: is not on this machine and cannot be fetched from the hub; check the network, or {by_hand}"
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError"}:
        return f"{name}: is not on the hub, or private ({why}); check name and revision, log in, or {by_hand}"
    if kinds & {"DataFilesNotFoundError", "EmptyDatasetError"}:
        return f"{name}: holds no data files that can be read; put .parquet, .jsonl or pictures into it"
    if "corresponds to no data" in str(error):
        return f"{name}: holds no row in this split; check name and split"
    if isinstance(error, OSError) and error.errno:
        return os_sentence(error)
    if "config" in str(error).lower():
        return f"{name}: {why}; give one of its configurations as config"
    return f"{name}: cannot be read ({why}); copy the files again"


def _chain(error: BaseException) -> list[BaseException]:
    """From the cause to what was raised."""
    found: list[BaseException] = [error]
    while (below := found[0].__cause__) is not None and below not in found:
        found.insert(0, below)
    return found
