"""Which column of a published data set is what: one row of a table per schema, or a mapping of the user's own.

    columns: m3cot
    columns: {image: picture, question: query, answer: label, steps: [lecture, solution], choices: options}

Place in the pipeline: `HubData.columns` -> `Columns` -> row_samples.py, which makes samples of rows. Torch-free.

Names and types as published by LightChen2333/M3CoT, derek-thomas/ScienceQA, lmms-lab/GQA (its files in JSON too),
OneThink/OneThinker-train-data and lupantech/PromptPG (TabMWP).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from lrkit.config import Config

Row = Mapping[str, Any]
Column = Annotated[str, Field(min_length=1, max_length=200)]
KEY = "#"
"""Column of the key of a row in a JSON file that maps keys to rows."""


class Columns(Config):
    """Columns by what they hold; of `image`, `steps` and `choices` also several, in order."""

    question: Column = "question"
    """What is asked."""
    answer: Column = "answer"
    """The bare answer: a text or a number; of a multiple choice its letter, its number from 0, or its text."""
    image: Column | tuple[Column, ...] = ()
    """Pictures: bytes, a path, a struct of both, or a list of these; left out: questions without pictures."""
    steps: Column | tuple[Column, ...] = ()
    """The solution: a text, which is split into steps, or a list of steps."""
    choices: Column | tuple[Column, ...] = ()
    """A list of choices, or a column for each; they stand behind the question as (A), (B), ..."""
    context: Column | None = None
    """What is told before the question; may be empty."""
    id: Column | None = None
    """Names the row."""
    answer_as: Literal["text", "letter"] = "text"
    """letter: the answer is the letter of its choice."""
    without_image: Literal["refuse", "take"] = "refuse"
    """take: rows whose picture is null are questions without pictures."""

    @property
    def pictures(self) -> tuple[str, ...]:
        return _several(self.image)

    @property
    def solutions(self) -> tuple[str, ...]:
        return _several(self.steps)

    @property
    def chosen_from(self) -> tuple[str, ...]:
        return _several(self.choices)

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that a row must have, though some may be null."""
        return (*self.pictures, self.question, *self.chosen_from, *self.solutions, self.answer)


def _several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class Schema:
    """How rows of a published data set are read."""

    columns: Columns
    prepare: Callable[[Row], Row] = lambda row: row
    """A row as `columns` reads it. Raises KeyError where a column is not there."""
    folders: tuple[str, ...] = ()
    """Where pictures lie that rows name by their id, below the folder of the file."""
    written: tuple[str, ...] = field(default=())
    """Columns that `prepare` makes, and those it makes them of: need not be in the file as they are."""


_LINK = re.compile(r"\s*->\s*")
_OBJECT_ID = re.compile(r"\s*(?:\(\s*(?:-|\d+(?:\s*,\s*\d+)*)\s*\)|\[[\d\s,]*\])")
_OPTION = re.compile(r"\s*\(?([A-Z])[.):]\s+")
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_HOW_TO_ANSWER = "Please answer this question based on the visual content"
"""Begins what OneThinker's prompts say about the form of the answer."""


def _gqa(row: Row) -> Row:
    """`semantic` is the program of a question: a list of operations, or their text joined by arrows."""
    steps = row.get("semantic") or row.get("semanticStr")
    if isinstance(steps, list):
        told = [f"{step.get('operation', '')}: {step.get('argument', '')}" for step in steps if isinstance(step, dict)]
    else:
        told = _LINK.split(steps) if isinstance(steps, str) else []
    program = [_OBJECT_ID.sub("", step).strip().rstrip(":") for step in told]
    picture = row["image"] if row.get("image") is not None else row["imageId"]
    return {**row, "program": [step for step in program if step], "picture": picture}


def _tabmwp(row: Row) -> Row:
    """The picture of a table has the problem's key as its name; the unit is told with the question."""
    unit, question = row.get("unit"), row["question"]
    if isinstance(unit, str) and unit.strip() and isinstance(question, str):
        question = f"{question.rstrip()} (Unit: {unit.strip()})"
    picture = row["image"] if row.get("image") is not None else row.get(KEY, row.get("id"))
    return {**row, "question": question, "picture": picture, "key": row.get(KEY, row.get("id"))}


def _tabmwp_text(row: Row) -> Row:
    """The table as text before the question, under its title."""
    told = [line for line in (row.get("table_title"), row["table"]) if isinstance(line, str) and line.strip()]
    return {**_tabmwp(row), "told": "\n".join(told)}


def _onethinker(row: Row) -> Row:
    """Rows for tuning hold a conversation, those for reinforcement a problem with its options."""
    if isinstance(row.get("messages"), list):
        row = {**row, **_of_conversation(row["messages"])}
    told = row.get("process") or ""
    solution = row["solution"] if "solution" in row else row["answer"]
    answer = _between(_ANSWER, solution) if isinstance(solution, str) else solution
    options = row.get("options") or None
    if isinstance(options, list):
        options = [_OPTION.sub("", option) if isinstance(option, str) else option for option in options]
    problem = row["problem"]
    if isinstance(problem, str):
        problem = problem.replace("<image>", "").partition(_HOW_TO_ANSWER)[0].strip()
    pictures = row["images"] if "images" in row else row["path"]
    given = {"problem": problem, "options": options, "answer": answer, "pictures": pictures}
    return {**row, **given, "process": _between(_THINK, told) if isinstance(told, str) else told}


def _of_conversation(messages: list[Any]) -> dict[str, Any]:
    said: dict[Any, Any] = {one["role"]: one["content"] for one in messages if isinstance(one, dict)}
    return {"problem": said["user"], "process": said["assistant"], "solution": said["assistant"]}


def _between(tags: re.Pattern[str], text: str) -> str:
    """What stands between tags; without them the whole text."""
    found = tags.search(text)
    return (found[1] if found else text).strip()


SCHEMAS: dict[str, Schema] = {
    "m3cot": Schema(
        Columns(image="image", choices="choices", context="context", steps="rationale", id="id", answer_as="letter")
    ),
    "scienceqa": Schema(
        Columns(
            image="image",
            choices="choices",
            context="hint",
            steps="solution",
            answer_as="letter",
            without_image="take",
        )
    ),
    "gqa": Schema(Columns(image="picture", steps="program", id="id"), _gqa, ("images",), ("picture", "program")),
    "onethinker": Schema(
        Columns(
            question="problem",
            image="pictures",
            choices="options",
            steps="process",
            id="problem_id",
            without_image="take",
        ),
        _onethinker,
        written=("problem", "pictures", "options", "process", "answer"),
    ),
    "tabmwp": Schema(
        Columns(image="picture", choices="choices", steps="solution", id="key"),
        _tabmwp,
        ("tables",),
        ("picture", "key"),
    ),
    "tabmwp-text": Schema(
        Columns(choices="choices", steps="solution", id="key", context="told"), _tabmwp_text, written=("told", "key")
    ),
}
"""Schema -> how its rows are read."""
SchemaName = Literal["m3cot", "scienceqa", "gqa", "onethinker", "tabmwp", "tabmwp-text"]
