"""M-RoPE positions of a prompt, in numpy: one source for training, the torch engine and the runtime without torch.

The prompt keeps the backbone's own spatial positions (method: section 1): text counts on in all three sections, an
image's
tokens share one temporal position and spread over rows and columns, and text goes on after the longer side of the grid.
Equal to `Qwen2VLModel.get_rope_index` of transformers (tests/parity/test_positions.py).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lrkit.errors import DataError


def mrope_positions(
    ids: Sequence[int],
    image_token_id: int,
    grids: Sequence[tuple[int, int, int]],
    merge: int,
) -> np.ndarray:
    """Positions (3, P) int64 (temporal, height, width) of the P tokens `ids`, without padding.

    `grids` are the patch grids (t, h, w) of the prompt's images in order; `merge` is the side of a merged patch square.

    Raises:
        DataError: the image tokens in `ids` do not match `grids`.
    """
    token = np.asarray(ids, dtype=np.int64)
    positions = np.empty((3, len(token)), dtype=np.int64)
    cursor, position = 0, 0
    for time, height, width in grids:
        rows, columns = height // merge, width // merge
        count = time * rows * columns
        starts = np.flatnonzero(token[cursor:] == image_token_id)
        start = cursor + int(starts[0]) if len(starts) else len(token)
        if start + count > len(token) or (token[start : start + count] != image_token_id).any():
            raise DataError(
                f"the prompt has {int((token == image_token_id).sum())} image tokens, but its images with the grids "
                f"{list(grids)} need others; encode the prompt with its own images"
            )
        positions[:, cursor:start] = np.arange(position, position + start - cursor)
        position += start - cursor
        positions[:, start : start + count] = _grid(time, rows, columns) + position
        position += max(rows, columns)
        cursor = start + count
    if (token[cursor:] == image_token_id).any():
        raise DataError(f"the prompt has more image tokens than its {len(grids)} images account for")
    positions[:, cursor:] = np.arange(position, position + len(token) - cursor)
    return positions


@lru_cache(maxsize=64)
def _grid(time: int, rows: int, columns: int) -> np.ndarray:
    """(3, time * rows * columns) int64, not to be written to."""
    return np.indices((time, rows, columns)).reshape(3, -1)
