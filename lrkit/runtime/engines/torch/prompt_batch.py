"""Encoded prompts to padded batches of tensors.

Place in the pipeline: `EncodedPrompt` -> `PromptBatch` -> model/generate.py. The prompts of a training batch are
padded here too.

Shapes: B samples, P prompt tokens, I pictures of the whole batch, G numbers of one cut, N patches of the whole batch, C
values of one patch, V visual tokens (padded to the largest sample), M patches of a window.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np
import torch

from lrkit.families.protocols import Grid
from lrkit.runtime.encode.processor import EncodedPrompt

Side = Literal["left", "right"]


@dataclass
class PromptBatch:
    """Prompts of one batch. Pictures stand in the order of the samples."""

    input_ids: torch.Tensor
    """(B, P) int64"""
    prompt_mask: torch.Tensor
    """(B, P) bool; False is padding."""
    pixel_values: torch.Tensor | None
    """(N, C) float32; None where no sample has a picture."""
    grids: torch.Tensor | None
    """(I, G) int64: how each picture was cut, in the family's own numbers; None where no sample has a picture."""
    images_per_sample: tuple[int, ...]
    """B numbers, which sum to I."""
    windows: torch.Tensor | None = field(default=None, kw_only=True)
    """(B, V, M, C) float32: what each visual token covers in the full picture; None where replay is not fine."""
    window_grid: Grid | None = field(default=None, kw_only=True)
    """The cut of every window."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on `device`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)


def collate_prompts(encoded: Sequence[EncodedPrompt], pad_id: int, side: Side = "right") -> PromptBatch:
    """Pad prompts to one length on `side` and join their pictures.

    Shapes: in, B prompts; out, see `PromptBatch`.
    """
    input_ids, prompt_mask = pad_rows([prompt.ids for prompt in encoded], pad_id, side)
    return PromptBatch(
        input_ids=input_ids,
        prompt_mask=prompt_mask,
        pixel_values=join_pixels(encoded),
        grids=join_grids(encoded),
        images_per_sample=tuple(len(prompt.grids) for prompt in encoded),
        windows=join_windows(encoded),
        window_grid=next((p.geometry.window_grid for p in encoded if p.windows is not None and p.geometry), None),
    )


def join_grids(encoded: Sequence[EncodedPrompt]) -> torch.Tensor | None:
    """The cuts of all pictures in turn, int64 (I, G); None where no prompt has a picture."""
    grids = [grid for prompt in encoded for grid in prompt.grids]
    return torch.tensor(grids, dtype=torch.int64) if grids else None


def join_pixels(encoded: Sequence[EncodedPrompt]) -> torch.Tensor | None:
    """Pixel values of all pictures in turn, float32 (N, C); None where no prompt has a picture."""
    given = [values for prompt in encoded if (values := prompt.pixel_values) is not None]
    return torch.from_numpy(np.concatenate(given)) if given else None


def join_windows(encoded: Sequence[EncodedPrompt]) -> torch.Tensor | None:
    """The windows of all prompts, float32 (B, V, M, C), zeros behind those of a prompt; None where none has any."""
    given = [prompt.window_values for prompt in encoded]
    shapes = [values.shape for values in given if values is not None]
    if not shapes:
        return None
    joined = np.zeros((len(given), max(shape[0] for shape in shapes), *shapes[0][1:]), np.float32)
    for row, values in zip(joined, given, strict=True):
        if values is not None:
            row[: len(values)] = values
    return torch.from_numpy(joined)


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, side: Side) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids to (B, longest) int64 and the mask of what is real."""
    longest = max((len(row) for row in rows), default=0)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=bool)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, place] = row
        mask[index, place] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)
