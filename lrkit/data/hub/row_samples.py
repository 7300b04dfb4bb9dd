"""A row of a published data set to a sample, or the reasons why it cannot be one. Torch-free.

Place in the pipeline: rows (row_files.py) + `Columns` (schemas.py) -> `RowReader` -> `Sample`. Rows come from anywhere,
so each reason is one short phrase, whatever the row holds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.contract.choices import index_of, letter, with_choices
from lrkit.contract.sample import Sample
from lrkit.data.hub.schemas import SCHEMAS, Columns, Row, Schema
from lrkit.data.hub.stored_pictures import PicturesByName, pictures_of
from lrkit.data.jsonl_line import MAX_IMAGES, MAX_REASONS, text_problems
from lrkit.data.step_split import SplitBy, joined_steps, split_steps
from lrkit.errors import DataError, did_you_mean, one_line, shown
from lrkit.pictures.input import ImageSource, kind_of

MAX_TEXT = 65_536
"""Characters of a question, a solution or a choice."""


@dataclass(frozen=True)
class RowReader:
    """Makes samples of the rows of one split."""

    schema: Schema
    folders: PicturesByName
    label: Path
    """What messages call the rows: a file, or the name and split of a data set."""
    by: SplitBy = "auto"
    most: int | None = None
    """Steps of a sample at most; more are merged evenly."""

    @property
    def columns(self) -> Columns:
        return self.schema.columns

    def check_names(self, names: list[str]) -> None:
        """The columns that are there suffice.

        Raises:
            DataError: naming all that are missing.
        """
        columns = self.columns
        missing = [name for name in columns.needed if name not in names and name not in self.schema.written]
        if missing:
            near = did_you_mean(missing[0], names)
            raise DataError(
                f"{self.label}: has no column {', '.join(missing)}; it has {one_line(', '.join(names), 300)}{near}; "
                f"choose another of columns ({', '.join(SCHEMAS)}), or map them yourself"
            )

    def sample(self, row: Row, number: int) -> Sample:
        """The sample of row `number`, counted from 1.

        Raises:
            DataError: with the reasons why there is none.
        """
        return self.sample_of(self.prepared(row), number)

    def prepared(self, row: Row) -> Row:
        """A row as the columns name it. Raises `DataError` where one is not there."""
        try:
            return self.schema.prepare(row)
        except KeyError as error:
            raise DataError(f"has no {error.args[0]}; choose another of columns ({', '.join(SCHEMAS)})") from error

    def sample_of(self, row: Row, number: int) -> Sample:
        """As `sample`, of a prepared row."""
        columns, problems = self.columns, list(self._text_problems(row))
        images, steps, choices, question, answer = list[ImageSource](), (), list[str](), "", ""
        try:
            images, steps, choices = self.images(row), self._steps(row), self._choices(row)
            if isinstance(row.get(columns.question), str):
                question = self._question(row, choices)
                problems += _long(columns.question, question)
            answer = self._answer(row, choices)
            problems += text_problems(answer, columns.answer, missing=False)
        except DataError as error:
            problems.append(str(error))
        if problems:
            raise DataError("; ".join(problems[:MAX_REASONS]))
        name = row.get(columns.id) if columns.id is not None else None
        return Sample(
            images=tuple(images),
            question=question,
            steps=steps,
            answer=answer,
            choices=tuple(choices),
            id=f"row {number}" if name is None or not str(name).strip() else one_line(str(name), 200),
            info={"line": number, "file": self.label},
        )

    def images(self, row: Row) -> list[ImageSource]:
        """The pictures of a prepared row. Raises as `pictures_of`."""
        found = [image for name in self.columns.pictures for image in pictures_of(row.get(name), self.folders)]
        if len(found) > MAX_IMAGES:
            raise DataError(f"there are {len(found)} pictures; at most {MAX_IMAGES} are taken")
        if not found and self.columns.pictures and self.columns.without_image == "refuse":
            raise DataError(f"{', '.join(self.columns.pictures)} is null; give a picture, or set without_image: take")
        return found

    def _text_problems(self, row: Row) -> Iterator[str]:
        columns = self.columns
        yield from text_problems(row.get(columns.question), columns.question, missing=columns.question not in row)
        if columns.context is not None and row.get(columns.context):
            yield from text_problems(row[columns.context], columns.context, missing=False)

    def _question(self, row: Row, choices: list[str]) -> str:
        told = row.get(self.columns.context) if self.columns.context is not None else None
        question = row[self.columns.question].strip()
        if isinstance(told, str) and told.strip():
            question = f"{told.strip()}\n{question}"
        return with_choices(question, choices) if choices else question

    def _choices(self, row: Row) -> list[str]:
        names = self.columns.chosen_from
        values = [row.get(name) for name in names]
        given: Any = values[0] if len(names) == 1 else [value for value in values if value not in (None, "")]
        if given is None or not names or given == []:
            return []
        if not isinstance(given, list):
            raise DataError(f"{names[0]} is {kind_of(given)}; give a list of texts")
        texts: list[Any] = [
            str(one) if isinstance(one, int | float) and not isinstance(one, bool) else one for one in given
        ]
        with_choices("", texts)
        return texts

    def _steps(self, row: Row) -> tuple[str, ...]:
        found: list[str] = []
        for name in self.columns.solutions:
            value: Any = row.get(name)
            for step in value if isinstance(value, list) else [value]:
                if step is None:
                    continue
                if not isinstance(step, str):
                    raise DataError(f"{name} is {kind_of(step)}; give a text or a list of texts")
                if problem := next((p for p in text_problems(step, name, False) if "is empty" not in p), None):
                    raise DataError(problem)
                if problem := next(_long(name, step), None):
                    raise DataError(problem)
                found += [" ".join(step.split())] if isinstance(value, list) and step.strip() else []
                found += [] if isinstance(value, list) else split_steps(step, self.by)
        return joined_steps(found, self.most)

    def _answer(self, row: Row, choices: list[str]) -> str:
        name, as_letter = self.columns.answer, self.columns.answer_as == "letter"
        value: Any = row.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            seen = "missing" if value is None and name not in row else "null" if value is None else kind_of(value)
            raise DataError(f"{name} is {seen}; give a text, a number or the letter of a choice")
        if not choices:
            if as_letter:
                raise DataError(f"{', '.join(self.columns.chosen_from) or 'choices'} is null; give the choices")
            return str(value).strip()
        if isinstance(value, str):
            index = index_of(value, choices)
        elif as_letter and isinstance(value, int):
            index = value
        else:
            index = index_of(str(value), choices)
        if not 0 <= index < len(choices):
            raise DataError(f"{name} is {shown(value)}, and the {len(choices)} choices have numbers from 0; correct it")
        return letter(index) if as_letter else " ".join(choices[index].split())


def _long(name: str, text: str) -> Iterator[str]:
    if len(text) > MAX_TEXT:
        yield f"{name} has {len(text)} characters; at most {MAX_TEXT} are taken"
