"""Spatially coherent self-distillation (eq. 7 to 9; method section 4). Training only; nothing here runs at inference.

Each latent step's replay is pooled into a student b(t). The teacher is the same vision tower's view of one window of
the image, the one with most of the replayed tokens, cropped and enlarged to the full input size.

Legend: B batch, K replayed tokens, D width, W side of the window in merged tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrkit.model.backbone import Backbone
from lrkit.model.precision import Float32Module, exact, wide
from lrkit.model.replay import Replay

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """A window of one image's merged grid, in merged tokens: rows top..bottom-1, columns left..right-1."""

    image: int
    top: int
    left: int
    bottom: int
    right: int

    def pixel_box(self, token_side: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels of the processed image; `token_side` = patch size x merge size."""
        return (
            self.left * token_side,
            self.top * token_side,
            self.right * token_side,
            self.bottom * token_side,
        )


class TokenSR(Float32Module):
    """F_SR, from the pooled replay to the teacher's features, D -> D (`linear`, the paper's best, or `mlp`)."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        if kind == "linear":
            self.map: nn.Module = nn.Linear(width, width)
        else:
            self.map = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, pooled: Tensor) -> Tensor:
        with exact(pooled):
            return self.map(wide(pooled))


def fullest_window(selected: Tensor, grid_thw: Grid, merge: int, side: int) -> tuple[int, int, int, int, int]:
    """(count, top, left, height, width) of the window with most tokens; ties go to the first in row-major order.

    `selected` (tokens of one image,) is True for the replayed ones; the window is clipped to the grid.
    """
    rows, columns = grid_thw[1] // merge, grid_thw[2] // merge
    marks = selected.view(-1, rows, columns).any(0).float()[None, None]
    height, width = min(side, rows), min(side, columns)
    counts = functional.conv2d(marks, torch.ones(1, 1, height, width, device=marks.device))[0, 0]
    best = int(counts.flatten().argmax())
    top, left = divmod(best, counts.shape[1])
    return int(counts[top, left]), top, left, height, width


def choose_window(selected: Tensor, grids: list[Grid], merge: int, side: int) -> Window | None:
    """The fullest window over a sample's images (first image on ties); None when nothing is selected."""
    best: tuple[int, Window] | None = None
    cursor = 0
    for image, grid in enumerate(grids):
        count = grid[0] * (grid[1] // merge) * (grid[2] // merge)
        number, top, left, height, width = fullest_window(selected[cursor : cursor + count], grid, merge, side)
        cursor += count
        if number > 0 and (best is None or number > best[0]):
            best = (number, Window(image, top, left, top + height, left + width))
    return None if best is None else best[1]


def crop_and_enlarge(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """(C, H, W) -> the pixel box of it, resized bilinearly to (C, H, W)."""
    left, top, right, bottom = box
    crop = image[None, :, top:bottom, left:right]
    return functional.interpolate(crop, size=image.shape[1:], mode="bilinear", align_corners=False)[0]


class Teacher:
    """Encodes the chosen windows of a batch, all crops of a step in one call, without gradient."""

    def __init__(
        self,
        backbone: Backbone,
        pixel_values: Tensor,
        image_grid_thw: Tensor,
        images_per_sample: tuple[int, ...],
        side: int,
    ) -> None:
        self._backbone = backbone
        self._side = side
        self._grids: list[Grid] = [(t, h, w) for t, h, w in image_grid_thw.tolist()]
        patches = pixel_values.split([t * h * w for t, h, w in self._grids])
        self._images = [backbone.unpatch(p, g) for p, g in zip(patches, self._grids, strict=True)]
        ends = torch.tensor(images_per_sample).cumsum(0).tolist()
        self._first = [end - count for end, count in zip(ends, images_per_sample, strict=True)]
        self._count = images_per_sample

    @torch.no_grad()
    def features(self, selected_BV: Tensor) -> tuple[Tensor, Tensor]:
        """u_ref (windows, D), mean-pooled, and the samples (windows,) they belong to."""
        chosen: list[tuple[int, Grid, Tensor]] = []
        for sample, row in enumerate(selected_BV.cpu()):
            first, merge = self._first[sample], self._backbone.merge_size
            grids = self._grids[first : first + self._count[sample]]
            window = choose_window(row, grids, merge, self._side)
            if window is None:
                continue
            image, grid = self._images[first + window.image], grids[window.image]
            token_side = image.shape[1] // (grid[1] // merge)
            crop = crop_and_enlarge(image, window.pixel_box(token_side))
            chosen.append((sample, grid, self._backbone.patch(crop)))
        device = selected_BV.device
        samples = torch.tensor([sample for sample, _, _ in chosen], dtype=torch.long, device=device)
        if not chosen:
            return torch.zeros(0, self._backbone.hidden_size, device=device), samples
        grid_thw = torch.tensor([grid for _, grid, _ in chosen], device=device)
        tokens = self._backbone.encode_images(torch.cat([patches for _, _, patches in chosen]), grid_thw)
        sizes = (grid_thw.prod(1) // self._backbone.merge_size**2).tolist()
        return torch.stack([part.mean(0) for part in wide(tokens).split(sizes)]), samples


def distillation_loss(
    head: TokenSR,
    replayed: Replay,
    reference: Tensor,
    samples: Tensor,
) -> tuple[Tensor, Tensor]:
    """L_rec(t) (eq. 8) per sample (B,), and which samples have one: `samples`, whose windows gave `reference`.

    The student pools the replay *as weighted*, so that the loss reaches the attention scores.
    """
    slots = replayed.valid_BK
    pooled_BD = (wide(replayed.tokens_BKD) * slots[..., None]).sum(1) / slots.sum(1, keepdim=True).clamp_min(1)
    has_B = torch.zeros(len(slots), dtype=torch.bool, device=slots.device)
    has_B[samples] = True
    error = (head(pooled_BD[samples]) - wide(reference)).pow(2).mean(1)
    loss_B = torch.zeros(len(slots), device=error.device, dtype=error.dtype).index_put((samples,), error)
    return loss_B, has_B
