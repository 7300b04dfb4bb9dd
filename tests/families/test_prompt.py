"""Ids of a prompt are those of the family's own processor: its chat template with the system prompt that it puts in
front, each picture's token repeated as often as the tower makes visual tokens of it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lrkit.contract.prompt import Turn
from lrkit.errors import UserError
from lrkit.runtime.encode.processor import Processor
from tests.families.cases import FamilyCase, peer_of
from tests.families.conftest import noise, pictures_of
from tests.families.peer import conversation_ids, inputs_of, open_processor

QUESTION = "How many squares are there?"
QUESTIONS = (
    QUESTION,
    "  tabs\tand\r\nlines, 12345 + 6.78 = ?\n\n",
    "请描述这张图片。 Où est le chat? ÄÖ🙂",
    "{images} {question} {{ 1 }} {% if x %} <b>&amp;</b>",
    "1. first\n2. second: \\n",
)
SIZES = ((112, 84), (30, 200), (28, 28), (301, 97), (3, 5))


@dataclass(frozen=True)
class Sides:
    """Both processors of a folder."""

    ours: Processor
    theirs: Any

    def check(self, question: str, pictures: Any) -> list[int]:
        own = self.ours.encode_prompt(pictures, question)
        assert own.ids == inputs_of(self.theirs, question, pictures)["input_ids"][0].tolist()
        return own.ids


@cache
def sides_of(case: FamilyCase, folder: Path) -> Sides:
    return Sides(Processor.from_folder(folder), open_processor(peer_of(case), folder))


@pytest.fixture
def sides(variant: tuple[FamilyCase, Path]) -> Sides:
    return sides_of(*variant)


def test_any_text_has_the_ids_of_the_familys_processor(sides: Sides) -> None:
    for question in QUESTIONS:
        sides.check(question, [])
        sides.check(question, [noise(112, 84)])


def test_pictures_of_any_size_have_as_many_tokens(sides: Sides) -> None:
    lengths = {len(sides.check(QUESTION, [noise(*size)])) for size in SIZES}
    without = len(sides.check(QUESTION, []))
    assert min(lengths) > without


def test_several_pictures_stand_one_behind_the_other(sides: Sides, variant: tuple[FamilyCase, Path]) -> None:
    for count in (2, 3):
        ids = sides.check(QUESTION, pictures_of(variant[0], count))
        assert ids.count(sides.ours.image_id) > 0


def test_a_processor_saved_by_lrkit_has_the_same_ids(
    sides: Sides, variant: tuple[FamilyCase, Path], tmp_path: Path
) -> None:
    """A trained checkpoint has prompt.json beside files that transformers reads, and one token more."""
    (tmp_path / "config.json").write_bytes((variant[1] / "config.json").read_bytes())
    sides.ours.save(tmp_path)
    again = Processor.from_folder(tmp_path)
    pictures = pictures_of(variant[0], 2)
    assert again.encode_prompt(pictures, QUESTION).ids == sides.ours.encode_prompt(pictures, QUESTION).ids
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for question in QUESTIONS:
        text = sides.ours.format.prompt_text(question, 1)
        assert (
            tokenizer.encode(text, add_special_tokens=False)
            == again.tokenizer.encode(text, add_special_tokens=False).ids
        )
    assert tokenizer.convert_tokens_to_ids(sides.ours.format.tokens.latent) == sides.ours.latent_id


def test_special_tokens_keep_their_published_ids(sides: Sides) -> None:
    """What ends an answer, what pads, what stands for a picture."""
    tokenizer = sides.theirs.tokenizer
    named = sides.ours.format.tokens
    for name in (named.image, named.eos, named.pad, *named.more_ends):
        assert tokenizer.convert_tokens_to_ids(name) == sides.ours.tokenizer.token_to_id(name)
    assert tokenizer.eos_token_id in sides.ours.end_ids
    assert sides.ours.latent_id not in {tokenizer.convert_tokens_to_ids(name) for name in tokenizer.all_special_tokens}


def test_a_conversation_has_the_ids_of_the_familys_processor(sides: Sides, variant: tuple[FamilyCase, Path]) -> None:
    """Its own chat template around three turns; a family without one has no follow-ups, and says so."""
    told = [Turn("How many?", "There are 2."), Turn("Which one is left?", " the red\none ")]
    pictures = pictures_of(variant[0], 2)
    if sides.ours.format.between_turns is None:
        assert getattr(sides.theirs, "chat_template", None) is None
        with pytest.raises(UserError, match="has no follow-ups"):
            sides.ours.encode_prompt(pictures, QUESTION, earlier=told)
        return
    for earlier in (told[:1], told):
        own = sides.ours.encode_prompt(pictures, QUESTION, earlier=earlier)
        assert own.ids == conversation_ids(
            sides.theirs, [(one.question, one.answer) for one in earlier], QUESTION, pictures
        )
