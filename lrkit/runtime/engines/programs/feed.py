"""Turns an encoded prompt into the arrays that a program reads (io_spec.py). Numpy only: export's check and the runtime
share it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrkit.contract.bundle.io_spec import PAST, WINDOWS, IoSpec
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
    spec: IoSpec | None = None,
    past: Mapping[str, Any] | None = None,
    windows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """All inputs of the form `program` for one prompt. `patches` (N, patch_bytes) uint8; None without a picture.
    `windows` (V, M, patch_bytes) uint8 are of the full pictures, for a program whose `spec` has such an input.

    `past` is what a look left, by the names of inputs that `spec` declares: then `ids` still are those of the whole
    prompt, with the tokens that were looked at in front. Without it those inputs are empty.

    Raises:
        DataError: the image tokens in `ids` do not match `grids`.
    """
    start = 0 if past is None else past["past_keys"].shape[3]
    read = geometry.program_feed(ids, image_id, grids, patches)
    return {
        "input_ids": np.asarray(ids[start:], np.int64),
        **read,
        "position_ids": np.ascontiguousarray(read["position_ids"][:, start:]),
        **_windows(windows, spec),
        "think": np.array(think),
        "fixed_latents": np.array(fixed_latents),
        "max_latent_steps": np.array(max_latent_steps, np.int64),
        "max_new_tokens": np.array(max_new_tokens, np.int64),
        **(no_past(spec) if past is None and spec is not None else past or {}),
    }


def no_past(spec: IoSpec) -> dict[str, np.ndarray]:
    """Those of a program's inputs that take what an earlier look left, where nothing was looked at: free axes have
    length 0."""
    taken = (one for one in spec.inputs if one.name.startswith(PAST))
    return {
        one.name: np.zeros([size if isinstance(size, int) else 0 for size in one.shape], one.dtype) for one in taken
    }


def window_of(spec: IoSpec) -> tuple[int, int] | None:
    """(patches of a window, bytes of a patch) of a program that reads windows; None: it reads none."""
    found = next((one.shape for one in spec.inputs if one.name == WINDOWS), None)
    if found is None:
        return None
    _, patches, size = found
    assert isinstance(patches, int) and isinstance(size, int), "checked when the bundle was opened"
    return patches, size


def _windows(windows: np.ndarray | None, spec: IoSpec | None) -> dict[str, np.ndarray]:
    window = None if spec is None else window_of(spec)
    if window is None:
        return {}
    if windows is None:  # the loop needs something to read; no visual token refers to it
        windows = np.zeros((1, *window), np.uint8)
    return {WINDOWS: np.ascontiguousarray(windows, np.uint8)}
