"""The answer is found in what is spoken, as training teaches it to be spoken, and is scored as right."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lrkit.contract.choices import LETTERS
from lrkit.contract.extract import is_correct
from lrkit.contract.prompt import PromptFormat, SpecialTokens
from lrkit.contract.scoring import answers_match, normalize_answer
from lrkit.runtime.encode.processor import Processor
from tests.unit.test_processor import WORDS, byte_pair_processor, word_processor

KNOWN = sorted({word for word in WORDS if word.isalnum()})
vocabulary = st.lists(st.sampled_from(KNOWN), min_size=1, max_size=5).map(" ".join)
letters = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp", "Cn"]), min_size=1, max_size=6)
free = st.lists(letters, min_size=1, max_size=4).map(" ".join)
formats = st.builds(
    PromptFormat,
    step_separator=st.sampled_from(["\n", " ; ", "\n\n"]),
    answer=st.sampled_from(["Answer: {answer}", "So it is {answer}, I think.", "#### {answer}", "= {answer} ="]),
)


@pytest.fixture(scope="module")
def words() -> Processor:
    return word_processor()


@pytest.fixture(scope="module")
def byte_pairs() -> Processor:
    return byte_pair_processor()


def check(processor: Processor, steps: list[str], answer: str) -> None:
    marker = processor.format.answer_marker
    assume(marker not in answer)
    ids = processor.encode_speech(steps, answer)
    assert ids[-1] == processor.eos_id and ids.count(processor.eos_id) == 1
    said = processor.decode(ids[:-1])
    assert (
        processor.format.find_answer(said, "cot")
        == processor.decode(processor.encode_speech([], answer)).removeprefix(marker).strip()
    )
    prefix = processor.answer_prefix_ids
    direct = processor.encode_speech([], answer)
    assert direct[: len(prefix)] == prefix
    behind = processor.decode(direct[len(prefix) : -1])
    for mode in ("direct", "latent"):
        assert processor.format.find_answer(behind, mode) == processor.format.find_answer(said, "cot")
    assert is_correct(said, behind, processor.format) == bool(normalize_answer(behind))


@given(st.lists(vocabulary, max_size=4), vocabulary)
def test_an_answer_in_words_of_the_vocabulary_is_found(words: Processor, steps: list[str], answer: str) -> None:
    check(words, steps, answer)
    said = words.decode(words.encode_speech(steps, answer))
    assert words.format.find_answer(said, "cot") == answer


@given(st.lists(free, max_size=3), free)
def test_an_answer_in_any_letters_is_found(byte_pairs: Processor, steps: list[str], answer: str) -> None:
    check(byte_pairs, steps, answer)
    said = byte_pairs.decode(byte_pairs.encode_speech(steps, answer))
    assert byte_pairs.format.find_answer(said, "cot") == answer


@given(formats, st.lists(free, max_size=3), free)
def test_an_answer_is_found_in_the_text_of_any_format(format: PromptFormat, steps: list[str], answer: str) -> None:
    marker, rest = format.answer_parts(answer)
    assume(marker not in rest)
    spoken = format.step_separator.join([*steps, marker + rest])
    assert format.find_answer(spoken, "cot") == format.find_answer(spoken, "latent") == answer
    assert format.find_answer(rest, "direct") == answer
    without = format.step_separator.join(steps)
    if marker not in without:
        assert format.find_answer(without, "cot") is None


@given(
    st.text(max_size=30), st.sampled_from(["{images}{question}", "Q: {question}\n{images}A:", "{images}\n\n{question}"])
)
def test_a_prompt_holds_the_question_and_each_picture_once(question: str, template: str) -> None:
    format = PromptFormat(template=template, image="[P]", tokens=SpecialTokens(image="P"))
    for images in range(3):
        text = format.prompt_text(question, images)
        assert text.replace(question, "", 1).count("[P]") >= images and question in text
        assert len(text) == len(template) - len("{images}{question}") + len(question) + 3 * images


numbers = st.one_of(
    st.integers(-(10**9), 10**9).map(lambda number: (str(number), f"{number:,}")),
    st.integers(-(10**6), 10**6).map(lambda number: (str(number), f"{number}.0")),
    st.integers(1, 999).map(lambda number: (f"{number}000", f"{number}e3")),
    st.decimals(-1000, 1000, places=2).map(lambda number: (str(number), f" {number}0.")),
)


@given(numbers)
def test_one_number_has_one_writing(pair: tuple[str, str]) -> None:
    assert normalize_answer(pair[0]) == normalize_answer(pair[1])
    assert answers_match(*pair) and answers_match(*reversed(pair))


@given(st.text(max_size=25))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once


@given(free, free)
def test_an_answer_that_says_more_than_the_reference_is_wrong(reference: str, more: str) -> None:
    """Nothing is searched inside a longer text: "not 7" is not 7."""
    wanted, said = normalize_answer(reference), normalize_answer(f"{reference} {more}")
    if wanted and said != wanted and reference[:1] not in f"{LETTERS}(":
        assert not answers_match(f"{reference} {more}", reference)
