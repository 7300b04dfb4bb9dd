"""A family's model inside lrkit is the family's model: without replay, with routing whose step encodings are zero.

Prompts come from the family's own processor on one side and from lrkit's on the other.

Legend: W vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrkit.contract.settings import ReasonerSettings
from lrkit.model.build import build_reasoner
from lrkit.model.open_backbone import load_backbone
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.common.protocol import AskOptions
from lrkit.runtime.engines.torch.engine import TorchEngine
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts
from tests.families.cases import FamilyCase, peer_of
from tests.families.conftest import pictures_of
from tests.families.peer import inputs_of, open_model, open_processor

WORDS = 5
"""Spoken tokens that are compared."""


@dataclass(frozen=True)
class Both:
    """One family, twice."""

    case: FamilyCase
    processor: Processor
    reasoner: LatentReasoner
    theirs: Any
    their_processor: Any


@pytest.fixture(scope="module")
def both(case: FamilyCase, folder: Path, processor: Processor) -> Iterator[Both]:
    routes = "routing" not in case.cannot
    chosen = {"replay": {"num_tokens": 0}, "routing": {"depth": 1 if routes else 0, "alpha": 8, "layers": "all"}}
    settings = ReasonerSettings.model_validate(chosen)
    reasoner = build_reasoner(load_backbone(str(folder), torch.float32), settings, processor.latent_id).eval()
    assert bool(reasoner.routing) is routes
    peer = peer_of(case)
    yield Both(case, processor, reasoner, open_model(peer, folder), open_processor(peer, folder))


@torch.no_grad()
def spoken(reasoner: LatentReasoner, prompts: Any, tokens: list[int]) -> list[Tensor]:
    """Logits (W) of the token behind the prompt and behind each of `tokens`."""
    state = reasoner.prefill(prompts)
    rows = [reasoner.logits(state.last_hidden_BD)[0]]
    for token in tokens:
        hidden = reasoner.speak(state, torch.tensor([[token]]), torch.ones(1, 1, dtype=torch.bool))
        rows.append(reasoner.logits(hidden[:, -1])[0])
    return rows


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 0], ids=["a picture", "several pictures", "no picture"])
def test_every_logit_is_transformers_bit_for_bit(both: Both, count: int) -> None:
    pictures = pictures_of(both.case, count)
    given = inputs_of(both.their_processor, both.case.question, pictures)
    how: dict[str, Any] = {"max_new_tokens": WORDS + 1, "min_new_tokens": WORDS + 1, "do_sample": False}
    made = both.theirs.generate(**given, **how, output_logits=True, return_dict_in_generate=True)
    length = given["input_ids"].shape[1]
    prompts = collate_prompts([both.processor.encode_prompt(pictures, both.case.question)], both.processor.pad_id)
    assert torch.equal(prompts.input_ids, given["input_ids"])
    ours = spoken(both.reasoner, prompts, made.sequences[0, length : length + WORDS].tolist())
    others = [index for index in range(len(ours[0])) if index != both.processor.latent_id]
    assert len(ours) == len(made.logits) == WORDS + 1
    for number, (own, their) in enumerate(zip(ours, made.logits, strict=True)):
        assert torch.equal(own[others], their[0, others]), f"spoken token {number}"


@pytest.mark.parametrize("count", [1, 2, 0], ids=["a picture", "several pictures", "no picture"])
def test_an_answer_is_what_the_family_generates_greedily(both: Both, count: int) -> None:
    """With the family's own end tokens, from its generation_config.json; random weights rarely meet one."""
    pictures = pictures_of(both.case, count)
    given = inputs_of(both.their_processor, both.case.question, pictures)
    theirs = both.theirs.generate(**given, max_new_tokens=8, do_sample=False)
    engine = TorchEngine(both.reasoner, both.processor)
    prompt = both.processor.encode_prompt(pictures, both.case.question)
    (answer,) = engine.generate([prompt], AskOptions("cot", max_new_tokens=8))
    said = theirs[0, given["input_ids"].shape[1] :].tolist()
    ends = both.processor.end_ids
    assert answer.token_ids == [token for token in said if token not in ends]
    assert len(set(said)) > 1, "one token again and again would show little"
    published = both.theirs.generation_config.eos_token_id
    assert set(published if isinstance(published, list) else [published]) <= set(ends)
