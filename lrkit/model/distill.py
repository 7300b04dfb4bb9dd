"""Spatially coherent self-distillation (eq. 7 to 9; method section 4). Training only; nothing here runs at inference.

Each latent step's replay is pooled into a student b(t). The teacher is the same vision tower's view of one window of
the image, the one with most of the replayed tokens, cropped and enlarged to the full input size. Both are input
embeddings: what visual tokens add behind deeper layers is not distilled.

Legend: B batch, K replayed tokens, D width, V visual tokens, W side of the window in visual tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrkit.families.protocols import Grid
from lrkit.model.backbone import Backbone
from lrkit.model.precision import Float32Module, exact, wide
from lrkit.model.replay import Replay


@dataclass(frozen=True)
class Window:
    """A window of one image, in visual tokens: rows top..bottom-1, columns left..right-1."""

    image: int
    top: int
    left: int
    bottom: int
    right: int

    def pixel_box(self, token_width: int, token_height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels of the processed image, by the size of a visual token in it."""
        return (
            self.left * token_width,
            self.top * token_height,
            self.right * token_width,
            self.bottom * token_height,
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


def fullest_window(marks: Tensor, side: int) -> tuple[int, int, int, int, int]:
    """(count, top, left, height, width) of the window with most tokens; ties go to the first in row-major order.

    `marks` (rows, columns) of one image is True for the replayed tokens; the window is clipped to the image.
    """
    rows, columns = marks.shape
    height, width = min(side, rows), min(side, columns)
    kernel = torch.ones(1, 1, height, width, device=marks.device)
    counts = functional.conv2d(marks.float()[None, None], kernel)[0, 0]
    best = int(counts.flatten().argmax())
    top, left = divmod(best, counts.shape[1])
    return int(counts[top, left]), top, left, height, width


def choose_window(rasters: Sequence[Tensor], side: int) -> Window | None:
    """The fullest window over a sample's images (first image on ties); None when nothing is selected."""
    best: tuple[int, Window] | None = None
    for image, marks in enumerate(rasters):
        number, top, left, height, width = fullest_window(marks, side)
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
        grids: Tensor,
        images_per_sample: tuple[int, ...],
        side: int,
    ) -> None:
        self._backbone = backbone
        self._side = side
        self._grids: list[Grid] = [tuple(grid) for grid in grids.tolist()]
        sizes = [backbone.picture_sizes(grid) for grid in self._grids]
        patches = pixel_values.split([count for count, _ in sizes])
        self._images = [backbone.unpatch(p, g) for p, g in zip(patches, self._grids, strict=True)]
        self._tokens = [count for _, count in sizes]
        ends = torch.tensor(images_per_sample).cumsum(0).tolist()
        self._of_sample = [range(end - count, end) for end, count in zip(ends, images_per_sample, strict=True)]

    @torch.no_grad()
    def features(self, selected_BV: Tensor) -> tuple[Tensor, Tensor]:
        """u_ref (windows, D), mean-pooled, and the samples (windows,) they belong to."""
        chosen: list[tuple[int, int, Tensor]] = []
        for sample, row in enumerate(selected_BV.cpu()):
            if found := self._window(row, self._of_sample[sample]):
                chosen.append((sample, *found))
        device = selected_BV.device
        samples = torch.tensor([sample for sample, _, _ in chosen], dtype=torch.long, device=device)
        if not chosen:
            return torch.zeros(0, self._backbone.hidden_size, device=device), samples
        grids = torch.tensor([self._grids[image] for _, image, _ in chosen], device=device)
        tokens = self._backbone.encode_images(torch.cat([patches for _, _, patches in chosen]), grids)
        sizes = [self._tokens[image] for _, image, _ in chosen]
        embeds = wide(tokens[:, : self._backbone.hidden_size])
        return torch.stack([part.mean(0) for part in embeds.split(sizes)]), samples

    def _window(self, selected_V: Tensor, images: range) -> tuple[int, Tensor] | None:
        """(image, patches of its enlarged window) of a sample; None where nothing is selected."""
        parts = selected_V[: sum(self._tokens[image] for image in images)].split([self._tokens[i] for i in images])
        rasters = [
            self._backbone.token_raster(part, self._grids[image]) for image, part in zip(images, parts, strict=True)
        ]
        window = choose_window(rasters, self._side)
        if window is None:
            return None
        number = images[window.image]
        image, (rows, columns) = self._images[number], rasters[window.image].shape
        box = window.pixel_box(image.shape[2] // columns, image.shape[1] // rows)
        return number, self._backbone.patch(crop_and_enlarge(image, box))


def distillation_loss(
    head: TokenSR,
    replayed: Replay,
    reference: Tensor,
    samples: Tensor,
) -> tuple[Tensor, Tensor]:
    """L_rec(t) (eq. 8) per sample (B,), and which samples have one: `samples`, whose windows gave `reference`.

    The student pools the replay *as weighted*, so that the loss reaches the attention scores.
    """
    slots = replayed.valid_BR
    embeds_BRD = wide(replayed.tokens_BRE[..., : reference.shape[-1]])
    pooled_BD = (embeds_BRD * slots[..., None]).sum(1) / slots.sum(1, keepdim=True).clamp_min(1)
    has_B = torch.zeros(len(slots), dtype=torch.bool, device=slots.device)
    has_B[samples] = True
    error = (head(pooled_BD[samples]) - wide(reference)).pow(2).mean(1)
    loss_B = torch.zeros(len(slots), device=error.device, dtype=error.dtype).index_put((samples,), error)
    return loss_B, has_B
