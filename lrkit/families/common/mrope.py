"""M-RoPE positions of a prompt, in numpy: one source for training, the torch engine and the runtime without torch.

The prompt keeps the backbone's own spatial positions (method: section 1): text counts on in all three sections. The
tokens of an image share one temporal position and spread over its rows and columns. The text after it continues
behind the longer side of the grid. Equal to `Qwen2VLModel.get_rope_index` of transformers
(tests/parity/test_positions.py).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from lrkit.errors import DataError
from lrkit.families.protocols import Grid

VisualPositions = Literal["grid", "sequence"]
"""grid: rows and columns have positions of their own, as M-RoPE has it; sequence: visual tokens count on like text, for
a language model that never learned rows and columns (docs/real-weights.md)."""


def mrope_positions(
    ids: Sequence[int],
    image_token_id: int,
    grids: Sequence[Grid],
    merge: int,
) -> np.ndarray:
    """Positions (3, P) int64 (temporal, height, width) of the P tokens `ids`, without padding.

    `grids` are the patch grids (t, h, w) of the prompt's images in order; `merge` is the side of a merged patch square.

    Raises:
        DataError: the image tokens in `ids` do not match `grids`.
    """
    ids, starts, cursor = list(ids), [], 0
    for time, height, width in grids:
        count = time * (height // merge) * (width // merge)
        start = ids.index(image_token_id, cursor) if image_token_id in ids[cursor:] else len(ids)
        cursor = start + count
        if ids[start:cursor].count(image_token_id) != count:
            raise DataError(
                f"the prompt has {ids.count(image_token_id)} image tokens, but its images with the grids "
                f"{list(grids)} need others; encode the prompt with its own images"
            )
        starts.append(start)
    if image_token_id in ids[cursor:]:
        raise DataError(
            f"the prompt has more image tokens than its {len(grids)} images account for; give it one per visual token"
        )
    return _layout(len(ids), tuple(starts), tuple(grids), merge).copy()


def visual_positions(
    kind: VisualPositions, ids: Sequence[int], image_token_id: int, grids: Sequence[Grid], merge: int
) -> np.ndarray:
    """As `mrope_positions`, or counted on like text, equal in all three sections, where `kind` is sequence. Raises
    alike."""
    found = mrope_positions(ids, image_token_id, grids, merge)
    return found if kind == "grid" else np.broadcast_to(np.arange(len(ids)), found.shape).copy()


@lru_cache(maxsize=64)
def _layout(length: int, starts: tuple[int, ...], grids: tuple[Grid, ...], merge: int) -> np.ndarray:
    """Positions (3, length) of a prompt whose images begin at `starts`; kept, as an app asks about pictures of few
    sizes."""
    positions = np.empty((3, length), dtype=np.int64)
    cursor, position = 0, 0
    for start, (time, height, width) in zip(starts, grids, strict=True):
        rows, columns = height // merge, width // merge
        positions[:, cursor:start] = np.arange(position, position + start - cursor)
        position += start - cursor
        cursor = start + time * rows * columns
        positions[:, start:cursor] = np.indices((time, rows, columns)).reshape(3, -1) + position
        position += max(rows, columns)
    positions[:, cursor:] = np.arange(position, position + length - cursor)
    return positions
