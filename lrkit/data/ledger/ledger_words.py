"""The words of ledgers. Each is one token of the language models that were looked at (SmolLM2, Qwen2).

Place in the pipeline: words -> ledger -> picture with labels, question, steps.
"""

NAMES: tuple[str, ...] = (
    *("Ann", "Ben", "Carl", "Dan", "Eva", "Finn", "Hugo", "Jack", "Kate", "Leo", "Mia", "Nina", "Otto", "Paul"),
    *("Rosa", "Sam", "Tom", "Vera", "Will", "Adam", "Emma", "Frank", "Grace", "Jane", "John", "Laura", "Lucy", "Mark"),
    *("Mary", "Max", "Nick", "Oscar", "Peter", "Ruth", "Simon", "Tim"),
)
"""Who stands in a row."""
GOODS: tuple[str, ...] = (
    *("apples", "pears", "pens", "books", "cups", "hats", "coins", "cards", "balls", "bells", "boats", "boxes"),
    *("caps", "chairs", "clocks", "coats", "dolls", "eggs", "flags", "forks", "keys", "lamps", "maps", "nuts"),
    *("plates", "rings", "ropes", "shells", "shirts", "shoes", "stamps", "stars", "tables", "toys", "trees", "bags"),
)
"""What is counted in a column."""
HEADS: tuple[str, ...] = ("Name", "Next")
"""Titles of the columns that hold names."""
DIGITS: tuple[str, ...] = tuple("0123456789")
BLANK = " "
"""Said by a visual token that shows no beginning of a word."""

LABELS: tuple[str, ...] = (*DIGITS, *(f" {word}" for word in (*NAMES, *GOODS, *HEADS)), BLANK)
"""Class of a visual token -> the word that the language model shall see there; words have the space that stands before
them in a text."""
CLASS_OF: dict[str, int] = {word.strip() or BLANK: number for number, word in enumerate(LABELS)}
"""Word, digit or BLANK -> its class."""
