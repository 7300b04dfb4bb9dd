"""What `lrkit push --merge` publishes, in plain transformers: logits of the merged model, and its latent steps.

A checkpoint of LoRA over the family's tiny model becomes one whole folder. transformers opens it, with the processor
that lies in it, and lrkit opens the checkpoint.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lrkit import save_pretrained
from lrkit.model.checkpoint import save_checkpoint
from lrkit.model.open_backbone import no_progress_bars
from lrkit.publish.latent_generate import generate
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.common.protocol import AskOptions
from lrkit.runtime.engines.torch.engine import TorchEngine
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts
from tests.families.cases import FamilyCase, peer_of
from tests.families.conftest import pictures_of
from tests.families.peer import inputs_of, open_processor
from tests.families.reasoners import rich_reasoner, settings_of

OFF: dict[str, Any] = {"routing": {"depth": 0}, "distill": {"weight": 0.0}}
"""Routing is refused there, and distillation is for training."""


@dataclass(frozen=True)
class Published:
    """The same model twice."""

    case: FamilyCase
    engine: TorchEngine
    theirs: Any
    their_processor: Any


@pytest.fixture(scope="module")
def published(
    case: FamilyCase, folder: Path, processor: Processor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Published]:
    place = tmp_path_factory.mktemp("published")
    reasoner = rich_reasoner(folder, settings_of(case, **OFF), processor, trainable="lora")
    numbers = {"provenance": {"numbers": {"backbone": "float32"}}}
    save_checkpoint(place / "adapter", reasoner, processor, str(folder), numbers)
    whole = save_pretrained(place / "adapter", place / "whole", merge=True)
    with no_progress_bars():
        theirs = AutoModelForImageTextToText.from_pretrained(whole).eval()
    engine = TorchEngine.from_checkpoint(place / "adapter")
    yield Published(case, engine, theirs, open_processor(peer_of(case), whole))


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 0], ids=["a picture", "no picture"])
def test_the_merged_model_has_the_logits_of_the_reasoner(published: Published, count: int) -> None:
    """In every column, that of the latent token too: its trained row is in the matrices. The hidden states are equal
    bit for bit; the last bit of the head's product depends on where its matrix lies in memory (4e-7 was measured)."""
    given, prompts = asked(published, count)
    reasoner = published.engine.reasoner
    hidden_BD = reasoner.prefill(prompts).last_hidden_BD
    assert torch.equal(published.theirs.model(**given).last_hidden_state[:, -1], hidden_BD)
    theirs = published.theirs(**given, logits_to_keep=1).logits[0, -1]
    assert theirs.dtype == torch.float32
    torch.testing.assert_close(theirs, reasoner.logits(hidden_BD)[0], rtol=1e-6, atol=1e-5)


def test_nothing_of_the_base_changes_what_is_said(published: Published) -> None:
    """Qwen2.5-VL publishes a repetition penalty of 1.05, and lrkit says the likeliest word."""
    config = published.theirs.generation_config
    assert config.repetition_penalty in (None, 1.0) and not config.do_sample


@pytest.mark.parametrize("count", [1, 2, 0], ids=["a picture", "several pictures", "no picture"])
def test_latent_steps_are_those_of_the_engine(published: Published, count: int) -> None:
    given, _ = asked(published, count)
    found = generate(published.theirs, **given, max_new_tokens=6, return_dict_in_generate=True)
    prompt = published.engine.processor.encode_prompt(pictures_of(published.case, count), published.case.question)
    (answer,) = published.engine.generate([prompt], AskOptions(max_new_tokens=6))
    said = found.sequences[0, given["input_ids"].shape[1] :].tolist()
    assert [token for token in said if token not in published.engine.processor.end_ids] == answer.token_ids
    assert found.latent_steps.tolist() == [answer.latent_steps] == [2] and found.halting == (answer.halting,)
    replayed = [[index for index in step[0].tolist() if index >= 0] for step in found.replayed]
    assert replayed == [[token.index for token in step] for step in answer.replayed]


def asked(published: Published, count: int) -> tuple[dict[str, Any], Any]:
    """The case's question, prepared by transformers and by lrkit: the same ids."""
    pictures, question = pictures_of(published.case, count), published.case.question
    processor = published.engine.processor
    given = inputs_of(published.their_processor, question, pictures)
    prompts = collate_prompts([processor.encode_prompt(pictures, question)], processor.pad_id)
    assert torch.equal(prompts.input_ids, given["input_ids"])
    return dict(given), prompts
