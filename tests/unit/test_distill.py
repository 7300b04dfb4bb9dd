"""Spatially coherent self-distillation (method section 4): windows, crops, teacher, and where its gradient goes."""

import itertools

import pytest
import torch
from torch import Tensor

from lrkit.model.build import set_trainable
from lrkit.model.distill import Teacher, Window, choose_window, crop_and_enlarge, fullest_window
from lrkit.model.generate import GenerationLimits, generate
from lrkit.model.reasoner import LatentReasoner
from tests.lab import rich_reasoner, settings
from tests.tiny import EOS, Batch, batch, prompt, tiny_backbone

DISTILLED = {
    "replay": {"num_tokens": 3, "weighting": "softmax"},
    "distill": {"weight": 1.0, "window": 2},
    "routing": {"depth": 1, "alpha": 4},
}


def marks(chosen: list[int], count: int) -> Tensor:
    selected = torch.zeros(count, dtype=torch.bool)
    selected[chosen] = True
    return selected


def training_batch() -> Batch:
    prompts = [prompt(1, ((1, 6, 8),)), prompt(2, ((1, 4, 4), (1, 4, 6))), prompt(3, ())]
    return batch(prompts, num_latents=[3, 1, 1], speech=[[9, EOS], [10, EOS], [11, EOS]])


def test_fullest_window_equals_counting_every_window() -> None:
    chance = torch.Generator().manual_seed(0)
    for _ in range(60):
        rows, columns, side = (int(torch.randint(1, 7, (1,), generator=chance)) for _ in range(3))
        selected = torch.rand(rows * columns, generator=chance) < 0.4
        grid = selected.view(rows, columns)
        high, wide = min(side, rows), min(side, columns)
        best = (-1, 0, 0)
        for top, left in itertools.product(range(rows - high + 1), range(columns - wide + 1)):
            count = int(grid[top : top + high, left : left + wide].sum())
            best = (count, top, left) if count > best[0] else best
        assert fullest_window(grid, side) == (*best, high, wide)


def test_ties_go_to_the_first_window_in_row_major_order() -> None:
    assert fullest_window(marks([0, 15], 16).view(4, 4), 2)[:3] == (1, 0, 0)
    assert fullest_window(marks([2, 12], 16).view(4, 4), 2)[:3] == (1, 0, 1)


def test_with_several_images_the_one_with_the_fullest_window_wins() -> None:
    small = torch.zeros(2, 2, dtype=torch.bool)
    window = choose_window([marks([0], 4).view(2, 2), marks([5, 6], 12).view(3, 4)], 2)
    assert window == Window(1, 0, 1, 2, 3)
    assert choose_window([marks([0], 4).view(2, 2), marks([0], 12).view(3, 4)], 2) == Window(0, 0, 0, 2, 2)
    assert choose_window([small, small], 2) is None


def test_pixel_box_of_any_grid_not_only_10_by_10() -> None:
    assert Window(0, 1, 2, 3, 5).pixel_box(28, 28) == (56, 28, 140, 84)


def test_crop_is_enlarged_bilinearly_to_the_whole_image() -> None:
    image = torch.arange(48).float().view(1, 6, 8)
    whole = crop_and_enlarge(image, (0, 0, 8, 6))
    assert torch.equal(whole, image)
    part = crop_and_enlarge(image, (4, 2, 8, 6))
    assert part.shape == image.shape and (float(part.min()), float(part.max())) == pytest.approx((20, 47))


def test_patch_and_unpatch_are_inverse() -> None:
    backbone = tiny_backbone()
    image = torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(0))
    patches = backbone.patch(image)
    assert patches.shape == (48, 96) and torch.equal(backbone.unpatch(patches, (1, 6, 8)), image)


class CountingTower:
    """Stands before a backbone and counts calls of its vision tower."""

    def __init__(self, reasoner: LatentReasoner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: list[int] = []
        encode = reasoner.backbone.encode_images

        def counted(pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
            self.images.append(len(grid_thw))
            return encode(pixel_values, grid_thw)

        monkeypatch.setattr(reasoner.backbone, "encode_images", counted)


def test_all_crops_of_a_step_are_one_call_and_stopped_samples_ask_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops of samples that no longer think were once encoded too, and thrown away."""
    reasoner = rich_reasoner(settings(**DISTILLED))
    tower = CountingTower(reasoner, monkeypatch)
    reasoner(training_batch())
    assert tower.images == [3, 2, 1, 1]  # the prompts' three images, then the crops of three steps


def test_teacher_never_runs_at_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The release encodes a crop at every step of inference."""
    reasoner = rich_reasoner(settings(**DISTILLED, think={"halting": "fixed", "max_latent_steps": 2}))
    tower = CountingTower(reasoner, monkeypatch)
    generate(reasoner, training_batch(), "latent", GenerationLimits(EOS, 2))
    assert tower.images == [3]


@torch.no_grad()
def test_every_latent_step_counts_in_the_loss() -> None:
    """The release keeps only the last step's."""
    reasoner = rich_reasoner(settings(**DISTILLED))
    made = training_batch()
    losses: list[Tensor] = []
    teacher_features = Teacher.features

    def each(self: Teacher, selected_BV: Tensor) -> tuple[Tensor, Tensor]:
        reference, samples = teacher_features(self, selected_BV)
        losses.append(samples)
        return reference + 5.0 * (len(losses) == 1), samples  # only the first step's teacher is moved away

    plain = reasoner(made).distill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "features", each)
        moved = reasoner(made).distill
    assert len(losses) == 3 and float(moved) > float(plain) + 1.0


@pytest.mark.parametrize("formation", ["tokens", "soft_mix"])
def test_distillation_alone_reaches_lora_and_tokensr_and_never_the_tower(formation: str) -> None:
    """The release's loss stops at F_SR."""
    sections = {**DISTILLED, "replay": {**DISTILLED["replay"], "formation": formation}}
    reasoner = rich_reasoner(settings(**sections))
    reasoner(training_batch()).distill.backward()
    got = {name: p.grad is not None and bool(p.grad.any()) for name, p in reasoner.named_parameters()}
    assert got["token_sr.map.weight"] and got["token_sr.map.bias"]
    # The last layer's values and MLP come after the last attention row that the loss sees.
    for which in ("q_proj", "k_proj"):
        names = [n for n in got if which in n and "lora_A" in n]
        assert len(names) == 4 and all(got[n] for n in names), which
    assert sum(got[n] for n in got if "lora_" in n) >= 2 * (3 * 7 + 2)
    assert not any(got[n] for n in got if ".visual." in n)


def test_the_teacher_gives_no_gradient_even_where_the_tower_is_trained() -> None:
    reasoner, made = rich_reasoner(settings(**DISTILLED)), training_batch()
    set_trainable(reasoner, "full")
    assert made.pixel_values is not None and made.grids is not None
    teacher = Teacher(reasoner.backbone, made.pixel_values, made.grids, made.images_per_sample, side=2)
    reference, samples = teacher.features(torch.ones(3, 12, dtype=torch.bool) & torch.tensor([[True], [True], [False]]))
    assert reference.shape == (2, 32) and samples.tolist() == [0, 1] and not reference.requires_grad


def test_teacher_without_selection_gives_no_loss_and_no_nan() -> None:
    reasoner = rich_reasoner(settings(**DISTILLED))
    made = batch([prompt(3, ()), prompt(4, ())], num_latents=[1, 2], speech=[[9, EOS], [9, EOS]])
    loss = reasoner(made)
    loss.total.backward()
    assert float(loss.distill) == 0.0 and bool(loss.total.isfinite())
