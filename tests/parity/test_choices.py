"""Choices are scored as the model's own probabilities say: by torch against a plain forward pass, by programs against
torch, and where a program cannot tell, the answer says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrkit.contract.choosing import Choices, log_softmax
from lrkit.contract.generated import MODES, Mode
from lrkit.data.trail import trail_set
from lrkit.errors import CapacityError, DataError, ExportError, UserError
from lrkit.export.bundle import export_bundle
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.encode.candidates import encode_candidates
from lrkit.runtime.engines.torch.engine import TorchEngine
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts
from lrkit.runtime.sdk import Reasoner
from tests.bundles import MAX_NEW_TOKENS, QUESTION, TARGET, picture, torch_reasoner

ROOMS = tuple("0123456789")
SPOKEN = ("room 4", "room 7", "4", "4 Step", "the room", "sign shows 3")
"""Some share their beginning, and one begins another."""


@pytest.fixture(scope="module")
def torch_one() -> Reasoner:
    return torch_reasoner("latent")


def said(texts: tuple[str, ...], per_token: bool = False) -> Choices:
    return Choices(texts, "texts", per_token)


def scores(answer: Answer) -> tuple[float, ...]:
    assert answer.choice is not None and answer.choice.scores is not None
    return answer.choice.scores


@torch.inference_mode()
def plain_scores(asked: Reasoner, mode: Mode, spoken: list[int], texts: tuple[str, ...]) -> list[float]:
    """Each choice fed whole behind what was spoken: one chunk, no trie, no fork."""
    engine = asked.engine
    assert isinstance(engine, TorchEngine)
    reasoner, processor = engine.reasoner, engine.processor
    candidates = encode_candidates(processor, said(texts))
    prompt = processor.asked_in(processor.encode_prompt([picture()], QUESTION), mode)
    found: list[float] = []
    for ids in candidates.ids:
        state = reasoner.read(collate_prompts([prompt], processor.pad_id))
        while mode == "latent" and int(state.latent_steps_B) < 3:
            reasoner.think(state, torch.ones(1, dtype=torch.bool))
        hidden = [state.last_hidden_BD[:, None]]
        fed = torch.tensor([[*spoken, *ids]])
        hidden.append(reasoner.speak(state, fed, torch.ones_like(fed, dtype=torch.bool)))
        logits = reasoner.logits(torch.cat(hidden, 1))[0].numpy()
        rows = [log_softmax(row, reasoner.latent.token_id) for row in logits[len(spoken) :]]
        total = sum(float(row[token]) for row, token in zip(rows, ids, strict=False))
        if candidates.counts_end:
            total += float(np.logaddexp.reduce(rows[len(ids)][list(candidates.ends)]))
        found.append(total)
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("texts", [ROOMS, SPOKEN])
def test_torch_scores_choices_as_plain_forward_passes_do(torch_one: Reasoner, mode: Mode, texts: Any) -> None:
    answer = torch_one.ask(picture(), QUESTION, mode, max_new_tokens=3, choices=said(texts))
    assert answer.choice is not None and answer.choice.by == "scored"
    processor = torch_one.processor
    marker, separator = processor.answer_prefix_ids, processor.separator_ids
    free = torch_one.ask(picture(), QUESTION, mode, max_new_tokens=3)
    words = [] if mode != "cot" else processor.tokenizer.encode(free.text, add_special_tokens=False).ids
    spoken = [*words, *(separator if words else []), *marker] if mode == "cot" else []
    assert scores(answer) == pytest.approx(plain_scores(torch_one, mode, spoken, texts), abs=1e-4)
    assert answer.choice.index == int(np.argmax(scores(answer))) and answer.choice.text == texts[answer.choice.index]
    assert answer.answer == answer.choice.text


def test_the_freely_spoken_answer_wins_where_it_is_a_choice(torch_one: Reasoner) -> None:
    free = torch_one.ask(picture(), QUESTION, "direct", max_new_tokens=1)
    word = free.text
    others = tuple(room for room in ROOMS if room != word)[:3]
    answer = torch_one.ask(picture(), QUESTION, "direct", choices=said((*others, word)))
    assert answer.choice is not None and answer.choice.text == word
    assert answer.ar_steps == answer.choice.passes == 0, "one token each: the prompt's own logits are enough"


def test_answers_without_choices_are_what_they_were(torch_one: Reasoner) -> None:
    before = torch_one.ask(picture(), QUESTION, max_new_tokens=6)
    torch_one.ask(picture(), QUESTION, choices=said(SPOKEN))
    after = torch_one.ask(picture(), QUESTION, max_new_tokens=6)
    assert (before.text, before.regions, before.depths) == (after.text, after.regions, after.depths)
    assert after.choice is None and after.to_dict()["choice"] is None


def test_programs_of_both_forms_score_as_torch_does(torch_one: Reasoner, bundle: Any, step_bundle: Any) -> None:
    wanted = torch_one.ask(picture(), QUESTION, "direct", choices=said(ROOMS))
    for folder in (bundle, step_bundle):
        answer = Reasoner.load(folder).ask(picture(), QUESTION, "direct", choices=said(ROOMS))
        assert scores(answer) == pytest.approx(scores(wanted), abs=1e-3)
        assert answer.choice is not None and wanted.choice is not None
        assert (answer.choice.index, answer.choice.by, answer.text) == (wanted.choice.index, "scored", wanted.text)
        assert answer.ar_steps == wanted.ar_steps == 0


def test_a_program_says_where_it_cannot_score(torch_one: Reasoner, bundle: Any) -> None:
    program = Reasoner.load(bundle)
    several = ("room 4", "sign 7", "4 hops")
    first = program.ask(picture(), QUESTION, "direct", choices=said(several))
    assert first.choice is not None and first.choice.by == "first token"
    alike = ("room 4", "room 7")
    for mode, texts in (("direct", alike), ("latent", ROOMS)):
        answer = program.ask(picture(), QUESTION, mode, choices=said(texts))
        free = program.ask(picture(), QUESTION, mode)
        assert answer.choice is not None and (answer.choice.by, answer.choice.scores) == ("said", None)
        assert answer.text == free.text and answer.ar_steps == free.ar_steps


@pytest.fixture(scope="module")
def scoring_bundle(bundle: Path) -> Path:
    """The latent role in the form step, whose steps give logits."""
    target, samples = TARGET.model_copy(update={"logits": True}), trail_set("main", "test", 2)
    place = bundle.parent / "scoring-bundle"
    return export_bundle(bundle.parent / "latent", place, target, samples, form="step", baselines=False).folder


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("texts", [ROOMS, SPOKEN])
def test_steps_that_give_logits_score_as_torch_does(
    torch_one: Reasoner, scoring_bundle: Path, mode: Mode, texts: Any
) -> None:
    stepped, most = Reasoner.load(scoring_bundle), 2
    wanted = torch_one.ask(picture(), QUESTION, mode, max_new_tokens=most, choices=said(texts))
    found = stepped.ask(picture(), QUESTION, mode, max_new_tokens=most, choices=said(texts))
    assert scores(found) == pytest.approx(scores(wanted), abs=1e-3)
    assert found.choice is not None and wanted.choice is not None and found.choice.by == "scored"
    told = [(one.text, one.answer, one.ar_steps, one.latent_steps, one.regions) for one in (found, wanted)]
    assert told[0][:4] == told[1][:4]
    assert (found.choice.index, found.choice.passes) == (wanted.choice.index, wanted.choice.passes)
    free = [one.ask(picture(), QUESTION, mode, max_new_tokens=most).text for one in (stepped, torch_one)]
    assert free[0] == free[1], "answers without choices are those of a bundle without logits"


@pytest.mark.long
def test_choices_longer_than_a_bundle_speaks_are_refused(scoring_bundle: Path) -> None:
    long = (" ".join(["room"] * (MAX_NEW_TOKENS + 2)), " ".join(["room"] * (MAX_NEW_TOKENS + 3)))
    with pytest.raises(CapacityError, match=f"need more than the {MAX_NEW_TOKENS} tokens that this bundle speaks"):
        Reasoner.load(scoring_bundle).ask(picture(), QUESTION, "direct", choices=said(long))


def test_logits_are_for_the_form_step(bundle: Path, tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"logits": True})
    with pytest.raises(ExportError, match="the target sets logits, which steps give to the host, and the form is prog"):
        export_bundle(bundle.parent / "latent", tmp_path / "none", target, [])
    assert not (tmp_path / "none").exists()


def test_a_batch_has_choices_of_its_own_questions(torch_one: Reasoner) -> None:
    given = [said(ROOMS), None, said(SPOKEN, per_token=True)]
    found = torch_one.ask_batch([(picture(), QUESTION)] * 3, "direct", max_new_tokens=2, choices=given)
    assert [one.choice is None for one in found] == [False, True, False]
    assert found[0].choice == torch_one.ask(picture(), QUESTION, "direct", choices=given[0]).choice
    sums = torch_one.ask(picture(), QUESTION, "direct", choices=said(SPOKEN))
    lengths = [len(ids) + 1 for ids in encode_candidates(torch_one.processor, said(SPOKEN)).ids]
    assert scores(found[2]) == pytest.approx([s / n for s, n in zip(scores(sums), lengths, strict=True)])


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ([], "there are 0 choices; give 2 to 26"),
        (["4"], "there are 1 choices; give 2 to 26"),
        ("47", "choices are '47'; give a list of two texts or more"),
        (7, "choices are 7; give a list"),
        (["4", "4"], "choices 1 and 2 are both '4'; give different ones"),
        (["4", " 4 "], "choices 1 and 2 are both"),
        (["4", ""], "choice 2 is ''; give a text that is not empty"),
        (["4", None], "choice 2 is None; give a text"),
        ([str(number) for number in range(1000)], "there are 1000 choices; give 2 to 26, or more of them with say"),
        (Choices(("4", "7"), "aloud"), "say is 'aloud'; give one of letters, texts, listed"),  # pyright: ignore
        (Choices(("4", "7"), "texts", 1), "per_token is 1; give True or False"),  # pyright: ignore
        (Choices(("4", "purple"), "texts"), "the choice holds words that this model's vocabulary lacks"),
        (Choices(("4", "<|im_end|>"), "texts"), "the choice holds <|im_end|>, which only the prompt format may use"),
        (["4", "7"], "the question holds words that this model's vocabulary lacks"),
    ],
)
def test_wrong_choices_are_one_sentence(torch_one: Reasoner, choices: Any, words: str) -> None:
    with pytest.raises((DataError, UserError)) as caught:
        torch_one.ask(picture(), QUESTION, "direct", choices=choices)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises((DataError, UserError), match=r"item 0 of the batch|holds"):
        torch_one.ask_batch([(picture(), QUESTION)], "direct", choices=[choices])


def test_choices_of_a_batch_fit_its_questions(torch_one: Reasoner) -> None:
    for choices in ("47", said(ROOMS), 7, []):
        with pytest.raises(DataError, match="give a list with the choices, or None, of each of the 1 questions"):
            torch_one.ask_batch([(picture(), QUESTION)], choices=choices)  # pyright: ignore
