"""The pointing loss: who says where a latent step looks, what that is in visual tokens, and what it teaches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lrkit.contract.settings import DistillSettings, ReasonerSettings, ReplaySettings
from lrkit.data.collate import Pointing, collate_training
from lrkit.data.looks import LABEL, label_shares, overlaps
from lrkit.data.trail import sample_trail
from lrkit.errors import ConfigError, UserError
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.model.checkpoint import load_checkpoint, save_checkpoint
from lrkit.model.pointing import as_target, pointing_loss
from lrkit.model.reasoner import LatentReasoner
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from lrkit.train.checks import check_start
from lrkit.train.recipe import load_recipe
from lrkit.train.teacher import PointingTeacher
from tests.tiny import EOS, batch, prompt, tiny_reasoner

POINTING = ReasonerSettings(replay=ReplaySettings(num_tokens=2), distill=DistillSettings(pointing=0.5))


def processor(zoom: int = 1) -> Processor:
    made = Processor.from_folder(resolve_checkpoint("tiny/base"))
    return made.see_for(ReplaySettings(source="fine", zoom=zoom)) if zoom > 1 else made


def encoded(grid: tuple[int, int, int], size: tuple[int, int], patch: int = 8) -> EncodedPrompt:
    return EncodedPrompt([], None, [grid], [size], ImageGeometry(patch_size=patch, merge_size=2))


def told(reasoner: LatentReasoner, looks: torch.Tensor):
    made = batch([prompt(0), prompt(1)], num_latents=[2, 1], speech=[[9, EOS], [10, EOS]])
    made.looks = looks
    return made


@pytest.mark.parametrize("kind", ["main", "wide", "woven"])
def test_labels_of_trails_lie_on_the_rooms_that_are_visited(kind: str) -> None:
    for seed in range(4):
        sample = sample_trail("train", kind, 5, np.random.default_rng(seed))  # pyright: ignore[reportArgumentType]
        seen = processor().encode_prompt(sample.images, sample.question)
        shares = label_shares(sample.info[LABEL], seen)
        assert shares.shape == (5, len(sample.info["token_rooms"]))
        for share, room in zip(shares, sample.info["rooms"], strict=False):
            on = sample.info["token_rooms"] == room
            assert np.allclose(share, on / on.sum())


def test_a_label_falls_on_the_window_of_its_room() -> None:
    sample = sample_trail("train", "woven", 3, np.random.default_rng(0))
    seen = processor(2).encode_prompt(sample.images, sample.question)
    shares = label_shares(sample.info[LABEL], seen)
    assert shares.argmax(1).tolist() == list(sample.info["rooms"][:3])
    assert shares.max(1).tolist() == [1.0] * 3


def test_a_step_without_a_label_has_no_share() -> None:
    assert label_shares([[]], encoded((1, 4, 4), (32, 32))).sum() == 0


def test_tokens_of_a_teacher_fall_on_what_they_lie_over() -> None:
    fine, coarse = encoded((1, 4, 8), (64, 32)), encoded((1, 2, 4), (64, 32), patch=16)
    shares = overlaps(fine, coarse)
    assert shares.shape == (8, 2)
    assert np.array_equal(shares.argmax(1), [0, 0, 1, 1, 0, 0, 1, 1]) and np.allclose(shares.max(1), 1)
    # A teacher whose tokens are as large as two of the model's gives each half of it.
    assert np.allclose(overlaps(coarse, fine)[0], np.array([1, 1, 0, 0, 1, 1, 0, 0]) / 4)


def test_tokens_of_different_pictures_never_meet() -> None:
    two = replace(encoded((1, 2, 2), (16, 16)), grids=[(1, 2, 2), (1, 2, 2)], sizes=[(16, 16), (16, 16)])
    assert np.array_equal(overlaps(two, two), np.eye(2))


def test_the_target_is_the_pooled_row_as_shares() -> None:
    row = torch.tensor([[0.1, 0.3, 0.2, 0.2]])
    pool = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1]]])
    torch.testing.assert_close(as_target(row, pool), torch.tensor([[0.5, 0.5]]))
    assert torch.equal(as_target(torch.zeros(1, 4), pool), torch.zeros(1, 2))


def test_a_sharper_target_is_where_the_teacher_looks_most() -> None:
    row = torch.tensor([[0.1, 0.3, 0.2, 0.2], [1e-20, 3e-20, 0, 0]])
    target = as_target(row, torch.eye(4).expand(2, 4, 4), 4)
    torch.testing.assert_close(target[0], torch.tensor([1.0, 81, 16, 16]) / 114)
    torch.testing.assert_close(target[1], torch.tensor([1.0, 81, 0, 0]) / 82)
    assert torch.equal(as_target(torch.zeros(1, 4), torch.eye(4)[None], 4), torch.zeros(1, 4))


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_teacher_points_as_its_own_row_does_whether_it_replays_or_not(tmp_path: Path, tokens: int) -> None:
    """A teacher without replay was refused, though it looks as well as any."""
    source = resolve_checkpoint("tiny/latent")
    loaded = load_checkpoint(source)
    settings = loaded.reasoner.settings.model_copy(update={"replay": ReplaySettings(num_tokens=tokens)})
    save_checkpoint(
        tmp_path / "teacher",
        load_checkpoint(source, settings=settings).reasoner,
        Processor.from_folder(source),
        loaded.base,
        {"stage": {"mode": "latent"}},
    )
    teacher = PointingTeacher(str(tmp_path / "teacher"), torch.device("cpu"), sharpness=2)
    samples = [sample_trail("train", "main", hops, np.random.default_rng(hops)) for hops in (1, 3)]
    made = teacher.point(collate_training(processor(), samples, [1, 3], pointing=Pointing(teacher.processor)))
    assert made.looks is not None and made.looks.shape == (2, 3, 10)
    torch.testing.assert_close(made.looks.sum(2), torch.ones(2, 3))
    # The shipped model looks at the room it is in, step by step; nobody told it to.
    seen = made.looks[1].argmax(1).tolist()
    assert [samples[1].info["token_rooms"][token] for token in seen] == list(samples[1].info["rooms"][:3])
    assert collate_training(processor(), samples, [0, 0], pointing=Pointing(teacher.processor)).looks is None


@pytest.mark.parametrize(("name", "said"), [("tiny/cot", "mode cot"), ("tiny/direct", "mode direct")])
def test_a_teacher_that_takes_no_latent_steps_is_refused_before_anything_is_written(name: str, said: str) -> None:
    asked = {"name": "x", "init": "tiny/latent", "teacher": name, "model": {"distill": {"pointing": 0.1}}}
    with pytest.raises(UserError, match=f"teacher: {name} is trained for the {said}"):
        check_start(load_recipe({**asked, "stages": [{"name": "a", "updates": 1}]}))


def test_the_loss_is_least_where_the_row_is_the_target() -> None:
    target = torch.tensor([[0.7, 0.2, 0.1]])
    active = torch.ones(1, dtype=torch.bool)
    least, _ = pointing_loss(target * 0.3, target, active)
    torch.testing.assert_close(least, -(target * target.log()).sum(1))
    for other in ([[0.6, 0.3, 0.1]], [[0.1, 0.1, 0.8]]):
        assert float(pointing_loss(torch.tensor(other), target, active)[0]) > float(least)


def test_who_has_stopped_or_is_not_told_has_no_loss() -> None:
    target = torch.tensor([[1.0, 0], [0, 0], [0, 1]])
    loss, has = pointing_loss(torch.full((3, 2), 0.5), target, torch.tensor([True, True, False]))
    assert has.tolist() == [True, False, False] and loss[1:].tolist() == [0, 0]


def test_the_loss_teaches_lora_and_leaves_the_tower_alone() -> None:
    reasoner = tiny_reasoner(POINTING, trainable="lora")
    looks = torch.zeros(2, 2, 6)
    looks[:, :, 3] = 1
    loss = reasoner(told(reasoner, looks))
    loss.pointing.backward()
    moved = {name for name, p in reasoner.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert any("q_proj.lora_B" in name for name in moved) and any("k_proj.lora_B" in name for name in moved)
    assert not any("visual" in name for name in moved)


def test_following_its_gradient_the_row_turns_to_the_target() -> None:
    reasoner = tiny_reasoner(POINTING, trainable="lora").train()
    looks = torch.zeros(2, 2, 6)
    looks[:, :, 3] = 1
    made = told(reasoner, looks)
    optimizer = torch.optim.Adam([p for p in reasoner.parameters() if p.requires_grad], 0.02)
    losses: list[float] = []
    for _ in range(12):
        loss = reasoner(made)
        optimizer.zero_grad()
        loss.pointing.backward()
        optimizer.step()
        losses.append(float(loss.pointing.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_the_total_is_weighed_and_a_mean_over_steps() -> None:
    reasoner = tiny_reasoner(POINTING)
    looks = torch.zeros(2, 2, 6)
    looks[0, 0, 1] = looks[0, 1, 2] = looks[1, 0, 4] = 1
    whole = reasoner(told(reasoner, looks))
    torch.testing.assert_close(whole.total, whole.speech + 0.5 * whole.pointing)
    parts: list[torch.Tensor] = []
    for row, step in ((0, 0), (0, 1), (1, 0)):
        alone = torch.zeros_like(looks)
        alone[row, step] = looks[row, step]
        parts.append(reasoner(told(reasoner, alone)).pointing)
    torch.testing.assert_close(whole.pointing, torch.stack(parts).mean())


def test_targets_of_steps_that_are_not_taken_count_nothing() -> None:
    reasoner = tiny_reasoner(POINTING)
    looks = torch.zeros(2, 2, 6)
    looks[0, 0, 1] = 1
    extra = looks.clone()
    extra[1, 1, 2] = 1  # the second sample takes one step
    torch.testing.assert_close(reasoner(told(reasoner, looks)).pointing, reasoner(told(reasoner, extra)).pointing)


def test_a_batch_holds_what_its_teacher_reads() -> None:
    samples = [sample_trail("train", "woven", hops, np.random.default_rng(hops)) for hops in (1, 2)]
    made = collate_training(processor(2), samples, [1, 2], pointing=Pointing(processor()))
    assert made.taught is not None and made.overlap is not None and made.looks is None
    assert made.overlap.shape == (2, 40, 10) and torch.equal(made.overlap.sum(2), torch.ones(2, 40))
    assert made.windows is not None and made.windows.shape[:2] == (2, 10)
    assert made.to("cpu").taught is not None
    labels = collate_training(processor(2), samples, [1, 2], pointing=Pointing()).looks
    assert labels is not None and labels.sum(2).tolist() == [[1, 0], [1, 1]]


def test_steps_that_are_merged_look_at_all_that_they_stand_for() -> None:
    sample = sample_trail("train", "main", 4, np.random.default_rng(0))
    looks = collate_training(processor(), [sample], [2], max_latent_steps=2, pointing=Pointing()).looks
    assert looks is not None and [int((row > 0).sum()) for row in looks[0]] == [2, 2]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"replay": {"num_tokens": 0}, "distill": {"pointing": 0.1}}, "nothing is selected"),
        ({"replay": {"num_tokens": 0, "source": "fine"}}, "would only be seen small"),
        ({"replay": {"source": "fine"}, "distill": {"weight": 0.1}}, "is then replayed itself"),
        ({"replay": {"source": "fine", "zoom": 1}}, "zoom"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(model: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe({"name": "x", "init": "tiny/base", "model": model, "stages": [{"name": "a", "updates": 1}]})
