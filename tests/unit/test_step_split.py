"""Written solutions become the steps that a reader would see: points that end no sentence do not split."""

import pytest

from lrkit.data.step_split import SplitBy, joined_steps, split_steps

SENTENCES: dict[str, tuple[str, ...]] = {
    "The price is $3.5 today. It rose by 2.5 percent. So the answer is B.": (
        "The price is $3.5 today.", "It rose by 2.5 percent.", "So the answer is B.",
    ),
    "Dr. Smith met Mr. J. K. Rowling in the U.S. Army base. They left at 5 p.m. The end.": (
        "Dr. Smith met Mr. J. K. Rowling in the U.S. Army base.", "They left at 5 p.m.", "The end.",
    ),
    "Look at e.g. Figure 2. It shows a cat, i.e. Felis. Thus option B. Therefore the answer is (B).": (
        "Look at e.g. Figure 2.", "It shows a cat, i.e. Felis.", "Thus option B.", "Therefore the answer is (B).",
    ),
    "We take vitamin C. It is good. The number no. 5 is best. On p. 5 we see it.": (
        "We take vitamin C.", "It is good.", "The number no. 5 is best.", "On p. 5 we see it.",
    ),
    r"We have $x = 3. Y$ and \(a. B\). Then $y = 4$. \[z = 1. A\] So it holds.": (
        r"We have $x = 3. Y$ and \(a. B\).", "Then $y = 4$.", r"\[z = 1. A\] So it holds.",
    ),
    "It costs $5. It costs $7. In all $12.": ("It costs $5.", "It costs $7.", "In all $12."),
    "1. Find the sum. 2. Add the numbers. 3. Done.": ("1. Find the sum.", "2. Add the numbers.", "3. Done."),
    "Step 1. Find the sum. Step 2. Add.": ("Step 1. Find the sum.", "Step 2. Add."),
    "今天很好。我们走吧！好。": ("今天很好。", "我们走吧！", "好。"),  # noqa: RUF001
    'What? Really! Yes... Then no. "He left." She stayed.': (
        "What?", "Really!", "Yes...", "Then no.", '"He left."', "She stayed.",
    ),
    "It is red (see Fig. 3. It helps). Next one.": ("It is red (see Fig. 3. It helps).", "Next one."),
    "This is a hard wrapped text that\nGoes on here and\nEnds now. And more.": (
        "This is a hard wrapped text that Goes on here and Ends now.", "And more.",
    ),
    "One sentence without an end": ("One sentence without an end",),
    "It is 5.The site is www.a.com. Now.": ("It is 5.The site is www.a.com.", "Now."),
}  # fmt: skip


@pytest.mark.parametrize("text", SENTENCES)
def test_a_point_ends_a_sentence_only_where_another_one_begins(text: str) -> None:
    assert split_steps(text) == SENTENCES[text]
    assert "".join("".join(split_steps(text)).split()) == "".join(text.split()), "nothing is lost"


def test_paragraphs_come_before_sentences() -> None:
    blocks = "Read the numbers. All.\r\n\r\n76, 94\n \nThere are 2."
    assert split_steps(blocks) == ("Read the numbers. All.", "76, 94", "There are 2.")
    assert split_steps(blocks, "sentences") == ("Read the numbers.", "All.", "76, 94", "There are 2.")
    formula = "Plug in the numbers.\nRate of change\n = \\frac{a}{b}\n = 3\nThe rate was 3."
    assert split_steps(formula) == ("Plug in the numbers.", "Rate of change = \\frac{a}{b} = 3", "The rate was 3.")
    assert split_steps("- First.\n- Second.") == ("- First.", "- Second.")
    assert split_steps("A is b. C is d.", "paragraphs") == ("A is b. C is d.",)


def test_too_many_steps_are_merged_evenly() -> None:
    text = "It is a. It is b. It is c. It is d. It is e."
    assert joined_steps(split_steps(text), 2) == ("It is a. It is b.", "It is c. It is d. It is e.")
    assert joined_steps(split_steps(text), 9) == split_steps(text) and len(joined_steps(split_steps(text), 1)) == 1


@pytest.mark.parametrize("by", ("auto", "paragraphs", "sentences"))
def test_texts_without_words_have_no_step(by: SplitBy) -> None:
    assert split_steps("", by) == split_steps(" \n\n \t", by) == ()


@pytest.mark.parametrize("piece", ("\\(", "$a", "(", ". A", "1. ", "$$", "\n = ", "A.", "(a. ", "\n\n "))
def test_hostile_texts_are_split_in_no_time(piece: str) -> None:
    """Quadratic searching would take minutes on these."""
    split_steps(piece * (65_536 // len(piece)))
