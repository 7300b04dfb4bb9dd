"""Fine replay around the model: answers in batches, what they count and show, limits, gradients, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrkit import Reasoner
from lrkit.contract.settings import ReasonerSettings, ReplaySettings
from lrkit.errors import UserError
from lrkit.model.checkpoint import load_checkpoint, save_checkpoint
from lrkit.model.generate import GenerationLimits, generate
from lrkit.model.replay import Windows, fine_replay
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.torch.engine import TorchEngine, check_recordable
from tests.tiny import EOS, MERGE, Batch, batch, prompt, tiny_reasoner, windows_of

FINE = ReplaySettings(num_tokens=1, source="fine", zoom=2, positions="shared")
QUESTION = "Take 3 hops. Which room are you in? Start in room 4"
SIX = {"halting": "fixed", "max_latent_steps": 6, "max_new_tokens": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny, told to look closer: it has not learned to, and every mechanism runs."""
    source = resolve_checkpoint("tiny/latent")
    loaded = load_checkpoint(source)
    settings = loaded.reasoner.settings.model_copy(update={"replay": FINE})
    changed = load_checkpoint(source, settings=settings)
    folder = tmp_path_factory.mktemp("fine") / "checkpoint"
    save_checkpoint(folder, changed.reasoner, Processor.from_folder(source), changed.base, {})
    return folder


@pytest.fixture(scope="module")
def reasoner(checkpoint: Path) -> Reasoner:
    return Reasoner.from_checkpoint(checkpoint)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_a_batch_of_unlike_questions_equals_each_alone(reasoner: Reasoner) -> None:
    asked = [([picture(160, 64)], QUESTION), ([picture(96, 96, 1), picture(64, 32, 2)], QUESTION), ([], QUESTION)]
    together = reasoner.ask_batch(asked, **SIX)  # pyright: ignore[reportArgumentType]
    for one, (images, question) in zip(together, asked, strict=True):
        alone = reasoner.ask(images, question, **SIX)  # pyright: ignore[reportArgumentType]
        assert (one.text, one.replayed_tokens, one.prefilled_tokens) == (
            alone.text, alone.replayed_tokens, alone.prefilled_tokens
        )  # fmt: skip
        assert [[region.box for region in step] for step in one.regions] == [
            [region.box for region in step] for step in alone.regions
        ]
    assert together[2].replayed_tokens == 0


def test_an_answer_counts_the_tokens_of_windows_and_shows_where_they_lie(reasoner: Reasoner, tmp_path: Path) -> None:
    image = picture(160, 64)
    whole = Reasoner.from_checkpoint("tiny").ask(image, QUESTION, **SIX)  # pyright: ignore[reportArgumentType]
    answer = reasoner.ask(image, QUESTION, **SIX)  # pyright: ignore[reportArgumentType]
    assert whole.prefilled_tokens - answer.prefilled_tokens == 40 - 10
    assert answer.replayed_tokens == 6 * 4
    boxes = [region.box for step in answer.regions for region in step]
    assert len(set(boxes)) == 6 and all(right - left == bottom - top == 32 for left, top, right, bottom in boxes)
    answer.save_trace(tmp_path / "trace.png")


def test_no_window_is_seen_twice_and_none_is_left_in_the_end(reasoner: Reasoner) -> None:
    answer = reasoner.ask(picture(64, 32), QUESTION, **SIX)  # pyright: ignore[reportArgumentType]
    assert [len(step) for step in answer.regions] == [1, 1, 0, 0, 0, 0]
    assert answer.replayed_tokens == 2 * 4


def test_the_tower_reads_the_small_picture_and_what_is_looked_at(reasoner: Reasoner) -> None:
    backbone, seen = reasoner.engine.reasoner.backbone, list[int]()  # pyright: ignore
    encode = backbone.encode_images

    def counted(pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return encode(pixels, grids)

    backbone.encode_images = counted
    try:
        reasoner.ask(picture(160, 64), QUESTION, **SIX)  # pyright: ignore[reportArgumentType]
    finally:
        del backbone.encode_images
    assert seen == [40] + [16] * 6


def test_max_pixels_is_that_of_the_full_picture(reasoner: Reasoner) -> None:
    prompted = reasoner.processor.encode_prompt([picture(640, 640)], QUESTION, max_pixels=64 * 64)
    assert prompted.windows is not None and prompted.windows.shape[:2] == (4, 16)
    (resized,) = prompted.resized
    assert resized.used == (64, 64)


def test_windows_of_stopped_samples_are_not_encoded() -> None:
    windows, calls = Windows(torch.rand(2, 3, 4, 5), (1, 2, 2)), list[int]()

    def encode(pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        calls.append(len(grids))
        return pixels.new_ones(len(grids) * 4, 6)

    free = torch.tensor([[True, True, False], [False, False, False]])
    found = fine_replay(ReplaySettings(num_tokens=2, source="fine"), torch.rand(2, 3), windows, free, encode)
    assert calls == [2]
    assert found.valid_BR.sum(1).tolist() == [8, 0] and found.index_BK[1].tolist() == [-1, -1]
    assert float(found.tokens_BRE[1].abs().sum()) == 0


def test_gradient_reaches_lora_through_the_weights_of_windows_and_no_tower() -> None:
    reasoner = tiny_reasoner(ReasonerSettings(replay=ReplaySettings(num_tokens=2, source="fine")), trainable="lora")
    loss = reasoner(trained([2, 1]))
    loss.total.backward()
    moved = {name for name, p in reasoner.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert any("lora_B" in name for name in moved) and not any("visual" in name for name in moved)


def test_a_tower_that_is_trained_is_trained_through_windows_too() -> None:
    settings = ReasonerSettings(replay=ReplaySettings(num_tokens=2, source="fine"))
    grads: list[torch.Tensor] = []
    for windows in (0, 5):
        reasoner = tiny_reasoner(settings, trainable="full")
        made = trained([2, 1])
        assert made.windows is not None
        made.windows = made.windows.roll(windows, 1)
        reasoner(made).total.backward()
        grads.append(next(p.grad for n, p in reasoner.named_parameters() if "patch_embed" in n and p.grad is not None))
    assert not torch.allclose(grads[0], grads[1])


def trained(latents: list[int]) -> Batch:
    prompts = [prompt(0), prompt(1)]
    made = batch(prompts, num_latents=latents, speech=[[9, EOS], [10, EOS]])
    made.windows, made.window_grid = windows_of(prompts, 2), (1, 2 * MERGE, 2 * MERGE)
    return made


def test_windows_decide_what_is_thought() -> None:
    reasoner = tiny_reasoner(ReasonerSettings(replay=ReplaySettings(num_tokens=2, source="fine")))
    made, limits = trained([0, 0]), GenerationLimits(EOS, 3, 2, "fixed")
    state, other = reasoner.prefill(made), trained([0, 0])
    assert other.windows is not None
    other.windows = other.windows.flip(1)
    changed = reasoner.prefill(other)
    torch.testing.assert_close(state.last_hidden_BD, changed.last_hidden_BD)
    for one in (state, changed):
        reasoner.think(one, torch.tensor([True, True]))
    assert not torch.allclose(state.last_hidden_BD, changed.last_hidden_BD)
    assert all(one.replayed_tokens == 16 for one in generate(reasoner, made, "latent", limits))


def test_cuda_graphs_are_refused_in_one_sentence() -> None:
    settings = ReasonerSettings(replay=FINE)
    check_recordable(settings, False)
    with pytest.raises(UserError, match=r"^cuda_graphs is on and replay.source is fine: .*leave cuda_graphs out$"):
        check_recordable(settings, True)


def test_settings_change_the_pictures_too(reasoner: Reasoner) -> None:
    engine = TorchEngine.from_checkpoint(resolve_checkpoint("tiny/latent"))
    settings = engine.settings.model_copy(update={"replay": FINE})
    assert engine.with_settings(settings).processor.zoom == 2
    assert engine.processor.zoom == 1
