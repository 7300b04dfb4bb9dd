"""The losses of the method once more (sections 4 and 6), beside reference.py: one sample, loops, windows by counting.

The vision tower is the transformers module itself, called on one crop at a time.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from tests.parity.reference import Reference
from tests.parity.reference_parts import Told

Grids = tuple[tuple[int, int, int], ...]


def speech_loss(
    ref: Reference, told: Told, speech: list[int], weights: list[float], may_think: bool
) -> tuple[Tensor, float]:
    """(weighted sum of cross entropies, sum of weights) of one sample (section 6)."""
    adaptive = ref.settings.think.halting == "adaptive"
    total, count = torch.zeros((), dtype=told.speech_logits_SW.dtype), 0.0
    for step, (token, weight) in enumerate(zip(speech, weights, strict=True)):
        logits = told.speech_logits_SW[step].clone()
        if step > 0 or not (adaptive and may_think):
            logits[ref.latent_id] = -math.inf
        total, count = total - weight * logits.log_softmax(0)[token], count + weight
    for logits in told.decision_logits if adaptive else []:
        total, count = total - logits.log_softmax(0)[ref.latent_id], count + 1
    return total, count


def image_of(ref: Reference, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Patches, in squares of merge x merge, -> (3, height, width)."""
    merge, size = ref.vision.spatial_merge_size, ref.vision.patch_size
    image = torch.empty(3, grid[1] * size, grid[2] * size, dtype=patches.dtype)
    for (row, col), patch in zip(_patch_places(grid, merge), patches, strict=True):
        tile = patch.view(3, ref.vision.temporal_patch_size, size, size)[:, 0]
        image[:, row * size : (row + 1) * size, col * size : (col + 1) * size] = tile
    return image


def patches_of(ref: Reference, image: Tensor, grid: tuple[int, int, int]) -> Tensor:
    merge, size, frames = ref.vision.spatial_merge_size, ref.vision.patch_size, ref.vision.temporal_patch_size
    rows = []
    for row, col in _patch_places(grid, merge):
        tile = image[:, row * size : (row + 1) * size, col * size : (col + 1) * size]
        rows.append(torch.stack([tile] * frames, dim=1).flatten())
    return torch.stack(rows)


def _patch_places(grid: tuple[int, int, int], merge: int) -> list[tuple[int, int]]:
    return [
        (top * merge + r, left * merge + c)
        for top in range(grid[1] // merge)
        for left in range(grid[2] // merge)
        for r in range(merge)
        for c in range(merge)
    ]


def window(
    ref: Reference, chosen: list[int], grids: tuple[tuple[int, int, int], ...]
) -> tuple[int, int, int, int, int, int]:
    """(count, image, top, left, height, width) of the fullest window (section 4)."""
    merge, side = ref.vision.spatial_merge_size, ref.settings.distill.window
    best, offset = (-1, 0, 0, 0, 0, 0), 0
    for image, (_, rows, cols) in enumerate(grids):
        rows, cols = rows // merge, cols // merge
        marks = {(divmod(i - offset, cols)) for i in chosen if offset <= i < offset + rows * cols}
        high, wide = min(side, rows), min(side, cols)
        for top in range(rows - high + 1):
            for left in range(cols - wide + 1):
                count = sum(top <= r < top + high and left <= c < left + wide for r, c in marks)
                if count > best[0]:
                    best = (count, image, top, left, high, wide)
        offset += rows * cols
    return best


def distill_loss(ref: Reference, told: Told, grids, pixels: Tensor | None) -> Tensor | None:
    """L_SCF of one sample: mean over the latent steps that replayed something."""
    losses = []
    for thought in told.thoughts:
        if thought.rows_KD is None:
            continue
        _, image, top, left, high, wide = window(ref, thought.replayed, grids)
        patches = pixels.split([t * h * w for t, h, w in grids])[image]
        whole = image_of(ref, patches, grids[image])
        unit = ref.vision.patch_size * ref.vision.spatial_merge_size
        crop = whole[:, top * unit : (top + high) * unit, left * unit : (left + wide) * unit]
        big = functional.interpolate(crop[None], size=whole.shape[1:], mode="bilinear", align_corners=False)[0]
        teacher = ref.encode(patches_of(ref, big, grids[image]), grids[image]).mean(0)
        student = thought.rows_KD[:, : len(teacher)].mean(0)
        losses.append((token_sr(ref, student) - teacher).pow(2).mean())
    return sum(losses) / len(losses) if losses else None


def token_sr(ref: Reference, x: Tensor) -> Tensor:
    name = "token_sr.map"
    if ref.settings.distill.head == "linear":
        return x @ ref.extra[f"{name}.weight"].T + ref.extra[f"{name}.bias"]
    x = (x @ ref.extra[f"{name}.0.weight"].T + ref.extra[f"{name}.0.bias"]).clamp_min(0)
    return x @ ref.extra[f"{name}.2.weight"].T + ref.extra[f"{name}.2.bias"]
