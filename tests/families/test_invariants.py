"""What must not change what a family's reasoner computes: other samples of a batch, padding, the cuts of its chunks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrkit.contract.attention import Attention
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.torch.prompt_batch import Side, collate_prompts
from tests.families.cases import FamilyCase
from tests.families.conftest import pictures_of
from tests.families.reasoners import batch_of, rich_reasoner, sample_of, settings_of, unlike_samples
from tests.flash_reference import stand_in
from tests.lab import Steps, run_steps

LATENTS = [2, 1, 2]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


@dataclass(frozen=True)
class Subject:
    """A family with everything on."""

    case: FamilyCase
    processor: Processor
    reasoner: LatentReasoner


@pytest.fixture(scope="module")
def subject(any_case: FamilyCase, any_folder: Path) -> Iterator[Subject]:
    processor = Processor.from_folder(any_folder)
    yield Subject(any_case, processor, rich_reasoner(any_folder, settings_of(any_case), processor))


@torch.no_grad()
def run(subject: Subject, samples: Any, latents: list[int], side: Side = "right", extra: int = 0) -> Steps:
    return run_steps(subject.reasoner, batch_of(subject.processor, samples, latents, side, extra))  # pyright: ignore


def replayed(steps: Steps, row: int) -> list[list[int]]:
    """Per latent step, the numbers of the visual tokens that a sample saw again."""
    return [found.selected_BV[row].nonzero()[:, 0].tolist() for found in steps.replays if found is not None]


@pytest.mark.parametrize(("side", "extra"), [("right", 0), ("left", 3)])
def test_a_batch_of_unlike_samples_equals_each_alone(subject: Subject, side: Side, extra: int) -> None:
    """A picture, several, none; padding on either side, and more of it than is needed."""
    samples = unlike_samples(subject.case)
    together = run(subject, samples, LATENTS, side, extra)
    for row, sample in enumerate(samples):
        alone = run(subject, [sample], [LATENTS[row]])
        for step in range(LATENTS[row]):
            torch.testing.assert_close(together.sources[step][row], alone.sources[step][0], **CLOSE)
        seen = [step for step in replayed(together, row) if step]
        assert seen == [step for step in replayed(alone, 0) if step]
        length = alone.speech_BSW.shape[1]
        torch.testing.assert_close(together.speech_BSW[row, :length], alone.speech_BSW[0], **CLOSE)


def test_a_replayed_token_never_comes_back_and_none_are_made_up(subject: Subject) -> None:
    """More latent steps than there are visual tokens for."""
    if "replay" in subject.case.cannot:
        pytest.skip("there is no replay")
    (picture,) = pictures_of(subject.case, 1)
    visual = subject.processor.encode_prompt([picture], subject.case.question).ids.count(subject.processor.image_id)
    sample = sample_of(subject.case, [picture])
    long = [sample.steps[0]] * 3
    steps = run(subject, [type(sample)(sample.images, sample.question, tuple(long), sample.answer)], [3])
    seen = [index for step in replayed(steps, 0) for index in step]
    assert len(seen) == len(set(seen)) == min(visual, 3 * subject.reasoner.settings.replay.num_tokens)
    assert bool(steps.speech_BSW.isfinite().all())


@torch.no_grad()
def test_what_is_cached_equals_what_is_read_again(any_folder: Path, subject: Subject) -> None:
    """Words spoken one by one behind a prompt, and the same words at the end of a longer prompt."""
    plain = settings_of(subject.case, replay={"num_tokens": 0}, routing={"depth": 0}, distill={"weight": 0.0})
    reasoner = rich_reasoner(any_folder, plain, subject.processor)
    for count in (1, 2, 0):
        encoded = subject.processor.encode_prompt(pictures_of(subject.case, count), subject.case.question)
        words = subject.processor.encode_speech(subject.case.steps, subject.case.answer)[:4]
        state = reasoner.prefill(collate_prompts([encoded], subject.processor.pad_id))
        for number, word in enumerate(words, start=1):
            reasoner.speak(state, torch.tensor([[word]]), torch.ones(1, 1, dtype=torch.bool))
            longer = type(encoded)(
                [*encoded.ids, *words[:number]], encoded.patches, encoded.grids, geometry=encoded.geometry
            )
            again = reasoner.prefill(collate_prompts([longer], subject.processor.pad_id))
            torch.testing.assert_close(state.last_hidden_BD, again.last_hidden_BD, **CLOSE)


@torch.no_grad()
def test_words_one_by_one_equal_words_at_once_behind_latents(subject: Subject) -> None:
    samples = unlike_samples(subject.case)
    at_once = run(subject, samples, LATENTS)
    batch = batch_of(subject.processor, samples, LATENTS)
    state = subject.reasoner.prefill(batch)
    for step in range(max(LATENTS)):
        subject.reasoner.think(state, batch.num_latents > step)
    rows: list[Tensor] = [subject.reasoner.logits(state.last_hidden_BD)]
    for column in range(batch.speech_ids.shape[1] - 1):
        valid = batch.speech_mask[:, column : column + 1]
        hidden = subject.reasoner.speak(state, batch.speech_ids[:, column : column + 1], valid)
        rows.append(subject.reasoner.logits(hidden[:, -1]))
    for column, row in enumerate(rows):
        real = batch.speech_mask[:, column]
        torch.testing.assert_close(row[real], at_once.speech_BSW[:, column][real], **CLOSE)


@torch.no_grad()
def test_later_speech_never_changes_an_earlier_logit(subject: Subject) -> None:
    samples = [sample_of(subject.case, pictures_of(subject.case, 1))]
    batch = batch_of(subject.processor, samples, [1])
    first = run_steps(subject.reasoner, batch).speech_BSW  # pyright: ignore
    batch.speech_ids[:, 2:] = batch.speech_ids[:, 2:].flip(1)
    second = run_steps(subject.reasoner, batch).speech_BSW  # pyright: ignore
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.equal(first[:, 3:], second[:, 3:])


@torch.no_grad()
def test_every_picture_is_seen(subject: Subject) -> None:
    """Another picture in any place of a prompt changes what is said."""
    pictures = pictures_of(subject.case, 2)
    whole = run(subject, [sample_of(subject.case, pictures)], [1]).speech_BSW
    for place in range(len(pictures)):
        other = [picture.rotate(180) if number == place else picture for number, picture in enumerate(pictures)]
        changed = run(subject, [sample_of(subject.case, other)], [1]).speech_BSW
        assert float((changed - whole).abs().max()) > 1e-3


def test_flash_kernels_compute_the_same(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a reference of their package; tests/unit/test_flash_attention.py tries every kind of chunk."""
    samples = unlike_samples(subject.case)
    want, calls = run(subject, samples, LATENTS), stand_in(monkeypatch)
    subject.reasoner.backbone.use_attention(Attention(vision="flash_attention_3", text="flash_attention_2"))
    try:
        got = run(subject, samples, LATENTS)
    finally:
        subject.reasoner.backbone.use_attention(Attention())
    spoken_BS = batch_of(subject.processor, samples, LATENTS).speech_mask
    torch.testing.assert_close(got.speech_BSW[spoken_BS], want.speech_BSW[spoken_BS], **CLOSE)
    assert [replayed(got, row) for row in range(len(samples))] == [replayed(want, row) for row in range(len(samples))]
    assert {name for name, causal, _ in calls.seen if causal} == {"flash_attention_2"}
    # A tower may have no attention of transformers' kind.
    assert {name for name, causal, _ in calls.seen if not causal} <= {"flash_attention_3"}
