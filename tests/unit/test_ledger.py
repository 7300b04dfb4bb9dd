"""The data set ledger: tables whose pictures, labels, questions and answers say the same."""

import re

import numpy as np
import pytest
from PIL import Image

from lrkit.data.ledger.ledger_picture import CELL, TYPEFACES, UNSEEN_TYPEFACES
from lrkit.data.ledger.ledger_questions import LENGTHS, draw_question, kinds_of
from lrkit.data.ledger.ledger_rows import Ledger, draw_ledger
from lrkit.data.ledger.ledger_samples import KINDS, TASKS, TOKEN_LABEL, ledger_set, sample_ledger
from lrkit.data.ledger.ledger_words import BLANK, CLASS_OF, LABELS
from lrkit.data.looks import LABEL
from lrkit.data.sources import load_samples
from lrkit.errors import ConfigError, UnknownNameError
from lrkit.train.recipe import load_recipe

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def ledgers(count: int) -> list[tuple[Ledger, np.random.Generator]]:
    rngs = [np.random.default_rng(seed) for seed in range(count)]
    return [(draw_ledger(rng, (4, 5, 6), 20), rng) for rng in rngs]


def test_next_leads_once_around_all_rows() -> None:
    for ledger, _ in ledgers(50):
        rows = len(ledger.names)
        assert sorted(ledger.path(0, rows - 1)) == list(range(rows)) and ledger.path(0, rows)[-1] == 0
        assert all(len(set(column)) == rows and min(column) >= 1 for column in ledger.numbers)


def answer_by_reading(question: str, ledger: Ledger) -> str:
    """What the question's own words ask for, worked out from the table by other code."""
    row = {name: number for number, name in enumerate(ledger.names)}
    goods = next(index for index, name in enumerate(ledger.goods) if re.search(rf"\b{name}\b", question))
    numbers = ledger.numbers[goods]
    people = [row[word] for word in re.findall(r"\w+", question) if word in row]
    if times := re.search(r"Next (\d+) time", question):
        here = people[0]
        for _ in range(int(times[1])):
            here = ledger.next_rows[here]
        return str(numbers[here])
    if question.startswith("Who"):
        met = [ledger.next_rows[one] for one in people] if "Next of" in question else people
        return ledger.names[max(met, key=lambda one: numbers[one])]
    return str(sum(numbers[one] for one in people))


@pytest.mark.parametrize("length", LENGTHS)
def test_the_steps_come_to_the_answer_of_the_question(length: int) -> None:
    for ledger, rng in ledgers(40):
        if not kinds_of(length, len(ledger.names)):
            continue
        asked = draw_question(ledger, length, rng)
        assert len(asked.steps) == length
        assert asked.steps[-1].result == answer_by_reading(asked.question, ledger), asked.question
        assert all(step.result in re.findall(r"\w+", step.said) for step in asked.steps)


def test_sentences_have_10_to_25_words_and_marks() -> None:
    said = [step for sample in ledger_set("main", "train", 60) for step in sample.steps]
    lengths = [len(re.findall(r"\d|\w+|[.,]", sentence)) for sentence in said]
    assert min(lengths) >= 10 and max(lengths) <= 25


def test_labels_say_the_table_row_by_row() -> None:
    for sample in ledger_set("main", "test", 12, task="read"):
        picture = sample.images[0]
        assert isinstance(picture, Image.Image)
        width, height = picture.size
        assert width % CELL == height % CELL == 0
        rows = sample.info[TOKEN_LABEL].reshape(height // CELL, width // CELL)
        said = ["".join(LABELS[number] for number in row if number != CLASS_OF[BLANK]).strip() for row in rows]
        read = [re.findall(r"[A-Za-z]+|\d", line) for line in said if line]
        wanted = [re.findall(r"[A-Za-z]+|\d", line) for line in sample.answer.split(";")]
        assert read[0][:2] == ["Name", "Next"] and sorted(read[1:]) == sorted(wanted)


def test_a_look_is_at_ink_and_sums_look_nowhere() -> None:
    for sample in ledger_set("main", "test", 24):
        picture = np.asarray(sample.images[0], np.float32)
        looks = sample.info[LABEL]
        assert len(looks) == len(sample.steps)
        for said, look in zip(sample.steps, looks, strict=True):
            assert bool(look) == ("row of" in said)
            for _, (left, top, right, bottom) in look:
                assert picture[int(top) : int(bottom), max(0, int(left)) : int(right)].std() > 5


def test_tasks_tell_one_question_at_different_lengths() -> None:
    told = {task: ledger_set("main", "val", 12, task=task) for task in TASKS if task != "read"}
    for words, terse, short in zip(told["words"], told["terse"], told["short"], strict=True):
        assert words.question == terse.question == short.question
        assert words.answer == terse.answer == short.answer == terse.steps[-1]
        assert terse.steps[:-1] == short.steps and len(words.steps) == len(terse.steps)
        assert np.array_equal(np.asarray(words.images[0]), np.asarray(short.images[0]))


def test_sets_hold_what_their_names_say() -> None:
    assert not set(TYPEFACES) & set(UNSEEN_TYPEFACES)
    tall = load_samples("ledger:tall", 4)
    assert all(np.asarray(sample.images[0]).shape[0] > 120 for sample in tall)
    assert [sample.id for sample in load_samples("ledger:typefaces", 2)] == ["typefaces-test-0-0", "typefaces-test-0-1"]
    assert {kind for kind in KINDS} == {"main", "typefaces", "tall"}
    with pytest.raises(UnknownNameError, match=r"ledger:mian.*did you mean 'ledger:main'"):
        load_samples("ledger:mian", 1)


def test_equal_seeds_draw_equal_ledgers_and_training_hides_most_blanks() -> None:
    one, other = (sample_ledger("main", "train", "words", 3, np.random.default_rng(5)) for _ in range(2))
    assert one.question == other.question
    assert np.array_equal(np.asarray(one.images[0]), np.asarray(other.images[0]))
    assert (one.info[TOKEN_LABEL] == -1).any()


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"tasks": {"brief": 1.0}}, "tasks: 'brief' is none of the data's, which are words, terse, short, read"),
        ({"lengths": [7]}, "a question about a ledger has 1 to 6 steps"),
        ({"boards": {"main": 1.0}}, "boards are those of trails"),
        ({"epochs": 1.0, "updates": None}, "give updates for ledgers"),
        (
            {"objective": "vision", "readouts": {"token_words": {"classes": 40, "tied": True}}},
            "has 40 classes for labels from 0 to 84",
        ),
        (
            {"objective": "vision", "readouts": {"token_digits": {"classes": 10}}},
            "no label 'token_digits'; known: token_words",
        ),
    ],
)
def test_what_a_stage_asks_of_ledgers_and_they_have_not(stage: dict[str, object], said: str) -> None:
    values = {"name": "x", "init": "tiny/base", "trainable": "tower", "data": {"kind": "ledger"}}
    with pytest.raises(ConfigError, match=said):
        load_recipe({**values, "stages": [{"name": "s", "updates": 1, **stage}]})
