"""The sample sets that `lrkit eval` knows: boards of the embedded trail data set by name, and JSONL files by path."""

from pathlib import Path
from typing import cast, get_args

from lrkit.contract.sample import Sample
from lrkit.data.board import BoardKind
from lrkit.data.jsonl import read_jsonl
from lrkit.data.scans import Split
from lrkit.data.trail import trail_set
from lrkit.errors import DataError, UnknownNameError, did_you_mean

TRAIL = "trail:"
TRAIL_SETS: tuple[str, ...] = tuple(f"{TRAIL}{kind}" for kind in get_args(BoardKind))


def load_samples(name: str, count: int | None, split: Split = "test", seed: int = 0) -> list[Sample]:
    """Samples of `trail:main`, `trail:long`, `trail:faint`, `trail:wide` (drawn with scans of `split`), or of a
    JSONL file.

    `count` None takes a whole file, and 1,000 pictures of a trail set.

    Raises:
        DataError: a file that is not there or holds bad lines.
        UnknownNameError: a trail set that does not exist.
    """
    if name.startswith(TRAIL):
        kind = name.removeprefix(TRAIL)
        if name not in TRAIL_SETS:
            raise UnknownNameError(
                f"unknown sample set {name!r}; known: {', '.join(TRAIL_SETS)}{did_you_mean(name, TRAIL_SETS)}"
            )
        return trail_set(cast(BoardKind, kind), split, 1000 if count is None else count, seed)
    path = Path(name)
    if not path.is_file():
        raise DataError(f"{name} is no file; give a JSONL file or one of {', '.join(TRAIL_SETS)}")
    samples = read_jsonl(path)
    return samples if count is None else samples[:count]
