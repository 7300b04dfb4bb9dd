"""Questions about a ledger, with the steps to the answer: look up, go on, add, compare.

Place in the pipeline: `Ledger` -> `Asked` -> `Sample`. Kinds of questions and their numbers of steps:

    look     1           how many Ben has
    follow   2 to 6      how many are where Next leads from Ben, one to five times
    add      3, 5        how many two or three people have together
    compare  3           which of two people has more
    meet     5           which of two people's Next has more
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lrkit.data.ledger.ledger_rows import Ledger

Kind = Literal["look", "follow", "add", "compare", "meet"]
LENGTHS: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
"""Numbers of steps that there are questions for."""


@dataclass(frozen=True)
class Step:
    """One step of a chain."""

    said: str
    """A sentence of 10 to 25 tokens."""
    result: str
    """What it finds, in a word."""
    cell: tuple[int, int] | None = None
    """(row, column) of the cell that it reads; None: it computes."""


@dataclass(frozen=True)
class Asked:
    """A question with its chain; the answer is the result of the last step."""

    kind: Kind
    question: str
    steps: tuple[Step, ...]


def kinds_of(length: int, num_rows: int) -> list[Kind]:
    """The kinds of questions with so many steps about a ledger of so many rows."""
    found: list[Kind] = []
    if length == 1:
        found.append("look")
    if 2 <= length <= num_rows:
        found.append("follow")
    if length == 3 or (length == 5 and num_rows >= 3):
        found.append("add")
    if length == 3:
        found.append("compare")
    if length == 5:
        found.append("meet")
    return found


def draw_question(ledger: Ledger, length: int, rng: np.random.Generator) -> Asked:
    """A random question of `length` steps."""
    kinds = kinds_of(length, len(ledger.names))
    kind = kinds[int(rng.integers(len(kinds)))]
    column = int(rng.integers(len(ledger.goods)))
    people = rng.permutation(len(ledger.names)).tolist()
    make: dict[Kind, Callable[[Ledger, int, Sequence[int], int], Asked]] = {
        "look": _follow, "follow": _follow, "add": _add, "compare": _compare, "meet": _meet,
    }  # fmt: skip
    return make[kind](ledger, column, people, length)


def _follow(ledger: Ledger, column: int, people: Sequence[int], length: int) -> Asked:
    rows, goods = ledger.path(people[0], length - 1), ledger.goods[column]
    name = ledger.names[people[0]]
    if length == 1:
        return Asked("look", f"How many {goods} does {name} have?", (_look(ledger, column, rows[0]),))
    times = f"{length - 1} time" + "s" * (length > 2)
    question = f"Start at {name} and go to Next {times}. How many {goods} are there?"
    steps = [_hop(ledger, row) for row in rows[:-1]] + [_look(ledger, column, rows[-1])]
    return Asked("follow", question, tuple(steps))


def _add(ledger: Ledger, column: int, people: Sequence[int], length: int) -> Asked:
    rows = people[: (length + 1) // 2]
    names = [ledger.names[row] for row in rows]
    together = f"{', '.join(names[:-1])} and {names[-1]}"
    steps, total = [_look(ledger, column, rows[0])], ledger.numbers[column][rows[0]]
    for row in rows[1:]:
        steps += [_look(ledger, column, row), _sum(total, ledger.numbers[column][row])]
        total += ledger.numbers[column][row]
    return Asked("add", f"How many {ledger.goods[column]} do {together} have together?", tuple(steps))


def _compare(ledger: Ledger, column: int, people: Sequence[int], length: int) -> Asked:
    one, other = people[:2]
    names = f"{ledger.names[one]} or {ledger.names[other]}"
    steps = (_look(ledger, column, one), _look(ledger, column, other), _more(ledger, column, one, other))
    return Asked("compare", f"Who has more {ledger.goods[column]}, {names}?", steps)


def _meet(ledger: Ledger, column: int, people: Sequence[int], length: int) -> Asked:
    starts = people[:2]
    one, other = (ledger.next_rows[row] for row in starts)
    names = " or the Next of ".join(ledger.names[row] for row in starts)
    steps = [step for row in starts for step in (_hop(ledger, row), _look(ledger, column, ledger.next_rows[row]))]
    question = f"Who has more {ledger.goods[column]}, the Next of {names}?"
    return Asked("meet", question, (*steps, _more(ledger, column, one, other)))


def _hop(ledger: Ledger, row: int) -> Step:
    name, following = ledger.names[row], ledger.names[ledger.next_rows[row]]
    return Step(f"The row of {name} says that Next is {following}, so we go to {following}.", following, (row, 1))


def _look(ledger: Ledger, column: int, row: int) -> Step:
    number = ledger.numbers[column][row]
    said = f"In the row of {ledger.names[row]} the number of {ledger.goods[column]} is {number}."
    return Step(said, str(number), (row, 2 + column))


def _sum(total: int, number: int) -> Step:
    return Step(
        f"Now we add {number} to the {total} from before, and that makes {total + number}.", str(total + number)
    )


def _more(ledger: Ledger, column: int, one: int, other: int) -> Step:
    numbers = ledger.numbers[column]
    first, second = (one, other) if numbers[one] > numbers[other] else (other, one)
    name = ledger.names[first]
    said = f"As {numbers[first]} is more than {numbers[second]}, it is {name} who has more."
    return Step(said, name)
