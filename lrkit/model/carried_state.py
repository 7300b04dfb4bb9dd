"""Shows a batch's carried state to a caller between latent steps, and takes back what it makes of it.

Place in the pipeline: generate.py calls `change` before a latent step where `AskOptions.before_step` is given.

Legend: B batch, N samples of it that still think, D width, V visual tokens.
"""

import numpy as np
import torch
from torch import Tensor

from lrkit.contract.carried import BeforeStep, Carried, changed
from lrkit.model.state import Sequences


def change(state: Sequences, before_step: BeforeStep, step: int, active_B: Tensor) -> None:
    """Updates `state` for the samples where `active_B` is True. The way to float32 and back loses nothing."""
    rows_N = active_B.nonzero()[:, 0]
    saliency_BV = state.saliency_BV
    given = Carried(
        step,
        tuple(rows_N.tolist()),
        _numbers(state.last_hidden_BD[rows_N]),
        None if saliency_BV is None else _numbers(saliency_BV[rows_N]),
    )
    found = changed(before_step, given)
    state.last_hidden_BD = _put(state.last_hidden_BD, rows_N, found.hidden)
    if saliency_BV is not None and found.saliency is not None:
        state.saliency_BV = _put(saliency_BV, rows_N, found.saliency)


def _numbers(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()  # indexing by rows has copied it


def _put(values: Tensor, rows_N: Tensor, found: np.ndarray) -> Tensor:
    new = values.clone()
    new[rows_N] = torch.from_numpy(found).to(values)
    return new
