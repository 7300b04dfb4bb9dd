"""What one latent step hands to the next, for those who look at it or change it between steps. Torch-free.

Place in the pipeline: `AskOptions.before_step` -> the loop of an engine -> `changed` before each latent step. Engines
call it only where somebody asked for it, so ordinary answers pay nothing.

Legend: B samples that take the step, D width, V visual tokens (padded to the prompt that has most).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lrkit.errors import UserError


@dataclass(frozen=True)
class Carried:
    """What a latent step starts from."""

    step: int
    """Of the latent step to come, from 1."""
    samples: tuple[int, ...]
    """Which prompts of the call the rows are of; those that have stopped thinking are left out."""
    hidden: np.ndarray
    """(B, D) float32: the hidden state, after the final norm, that becomes the latent's input."""
    saliency: np.ndarray | None
    """(B, V) float32: a(t), by which the step replays visual tokens; None without pictures or replay."""


BeforeStep = Callable[[Carried], Carried]
"""Returns what the step is to start from instead, or what it was given. The arrays are copies and may be written to."""


def changed(before_step: BeforeStep, given: Carried) -> Carried:
    """What `before_step` makes of `given`, as float32 arrays of the same shapes.

    Raises:
        UserError: it returns other shapes, or a saliency where there is none.
    """
    found = before_step(given)
    hidden = _like("hidden", given.hidden.shape, found.hidden)
    if given.saliency is None:
        if found.saliency is not None:
            raise UserError("before_step gave a saliency, but this step replays nothing; leave it None")
        return replace(given, hidden=hidden)
    if found.saliency is None:
        raise UserError("before_step gave no saliency, but this step replays by it; return the one it was given")
    return replace(given, hidden=hidden, saliency=_like("saliency", given.saliency.shape, found.saliency))


def of_sample(before_step: BeforeStep | None, sample: int) -> BeforeStep | None:
    """As a loop around one prompt calls it: its row is that of prompt number `sample` of the call."""
    if before_step is None:
        return None
    return lambda given: before_step(replace(given, samples=(sample,)))


def _like(name: str, shape: tuple[int, ...], found: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(found, dtype=np.float32)
    if array.shape != shape:
        raise UserError(f"before_step gave {name} of shape {list(array.shape)}; it must stay {list(shape)}")
    return array
