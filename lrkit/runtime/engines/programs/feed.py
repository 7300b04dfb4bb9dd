"""Turns an encoded prompt into the arrays that a program reads (io_spec.py). Numpy only: export's check and the runtime
share it."""

from collections.abc import Sequence

import numpy as np

from lrkit.families.protocols import Geometry, Grid


def build_feed(
    ids: Sequence[int],
    grids: Sequence[Grid],
    patches: np.ndarray | None,
    *,
    geometry: Geometry,
    image_id: int,
    think: bool,
    fixed_latents: bool,
    max_latent_steps: int,
    max_new_tokens: int,
) -> dict[str, np.ndarray]:
    """All inputs of the form `program` for one prompt. `patches` (N, patch_bytes) uint8; None without a picture.

    Raises:
        DataError: the image tokens in `ids` do not match `grids`.
    """
    return {
        "input_ids": np.asarray(ids, np.int64),
        **geometry.program_feed(ids, image_id, grids, patches),
        "think": np.array(think),
        "fixed_latents": np.array(fixed_latents),
        "max_latent_steps": np.array(max_latent_steps, np.int64),
        "max_new_tokens": np.array(max_new_tokens, np.int64),
    }
