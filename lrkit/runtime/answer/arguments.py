"""Checks what callers hand to `Reasoner`: a wrong type or value is one sentence, before anything is loaded or run.

Place in the pipeline: an application -> runtime/sdk.py -> here. Pictures are checked by pictures/input.py.
"""

import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from lrkit.contract.choosing import Choices
from lrkit.contract.generated import MODES, Mode
from lrkit.errors import CapacityError, DataError, UserError, os_sentence
from lrkit.pictures.input import ImageSource, as_pictures, kind_of, path_text
from lrkit.runtime.engines.common.protocol import AskOptions

HALTING = ("adaptive", "fixed")
MAX_QUESTION = 1_000_000
"""Characters; some thousand pages. What a model reads is bounded by its own limits below that."""
_LARGEST = 2**31 - 1


def ask_options(mode: Any, max_new_tokens: Any, max_latent_steps: Any, halting: Any) -> AskOptions:
    """The options of `Reasoner.ask`, checked.

    Raises:
        UserError: a value that is not allowed.
    """
    if halting is not None and not (isinstance(halting, str) and halting in HALTING):
        raise UserError(f"halting is {_shown(halting)}; give one of {', '.join(HALTING)}, or None for the model's own")
    return AskOptions(
        known_mode(mode),
        whole_number("max_new_tokens", max_new_tokens, 1),
        whole_number("max_latent_steps", max_latent_steps, 0),
        cast(Any, halting),
    )


def known_mode(mode: Any) -> Mode:
    """`mode`, if it is one.

    Raises:
        UserError: it is not.
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise UserError(f"unknown mode {_shown(mode)}; give one of {', '.join(MODES)}")
    return mode


def whole_number(name: str, value: Any, least: int) -> int | None:
    """A whole number, numpy's among them, as int; None stays None.

    Raises:
        UserError: something else, or a number below `least` or above 31 bits.
    """
    if value is None:
        return None
    try:
        if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
            raise TypeError
        number = operator.index(value)
    except Exception as error:  # also of the caller's own number
        raise UserError(f"{name} is {_shown(value)}; give a whole number of {least} or more, or None") from error
    if not least <= number <= _LARGEST:
        raise UserError(f"{name} is {_shown(number)}; it must be {least} or more, and at most {_LARGEST}")
    return number


def question_text(question: Any, what: str = "the question") -> str:
    """`question`, if it is text that can be asked.

    Raises:
        DataError: no text, or half of a surrogate pair in it.
        CapacityError: it is too long.
    """
    if not isinstance(question, str):
        raise DataError(f"{what} is {kind_of(question)}; give a text")
    if len(question) > MAX_QUESTION:
        raise CapacityError(f"{what} has {len(question)} characters, above the limit of {MAX_QUESTION}; shorten it")
    try:
        question.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds half of a surrogate pair (character {error.start}), which is no character; take it out"
        ) from error
    return question


def question_texts(questions: Any) -> list[str]:
    """The questions of `Scene.ask_batch`.

    Raises:
        DataError: no list of texts.
        CapacityError: one is too long.
    """
    if isinstance(questions, str | bytes | Mapping) or not isinstance(questions, Iterable):
        raise DataError(f"the questions are {kind_of(questions)}; give a list of texts, or use ask for one")
    listed = cast(Iterable[Any], questions)
    return [question_text(one, f"question {number}") for number, one in enumerate(listed, start=1)]


def question_pairs(questions: Any) -> list[tuple[tuple[ImageSource, ...], str]]:
    """The (pictures, question) pairs of a batch.

    Raises:
        DataError: something else than pairs, or a picture or question that cannot be used.
    """
    sentence = f"the batch is {kind_of(questions)}; give a list of (image, question) pairs"
    if isinstance(questions, str | bytes | bytearray | Mapping):
        raise DataError(sentence)
    try:
        items: Iterator[Any] = iter(questions)
    except TypeError as error:  # also of what says that it can be gone through, such as an array without a dimension
        raise DataError(sentence) from error
    pairs: list[tuple[tuple[ImageSource, ...], str]] = []
    for number, pair in enumerate(items):
        if not isinstance(pair, tuple | list) or len(cast(list[Any], pair)) != 2:
            raise DataError(f"item {number} of the batch is {kind_of(pair)}; give (image, question) pairs")
        image, question = cast(tuple[Any, Any], pair)
        pairs.append((as_pictures(image), question_text(question, f"the question of item {number}")))
    return pairs


def choices_of_each(choices: Any, count: int) -> list[Choices | None] | None:
    """The `choices` of a batch of `count` questions; None where there are none.

    Raises:
        DataError: no list with choices, or None, for each question.
    """
    if choices is None:
        return None
    sentence = f"give a list with the choices, or None, of each of the {count} questions"
    if isinstance(choices, str | bytes | Mapping | Choices) or not isinstance(choices, Iterable):
        raise DataError(f"choices are {kind_of(choices)}; {sentence}")
    listed = list(cast(Iterable[Any], choices))
    if len(listed) != count:
        raise DataError(f"there are choices of {len(listed)} questions; {sentence}")
    made: list[Choices | None] = []
    for number, one in enumerate(listed):
        try:
            made.append(Choices.of(one))
        except UserError as error:
            raise type(error)(f"item {number} of the batch: {error}") from error
    return made


def file_path(name: str, path: Any) -> Path:
    """The path of a file, as text or Path.

    Raises:
        UserError: something else.
    """
    text = path_text(path)
    if text is None:
        raise UserError(f"{name} is {kind_of(path)}; give the path of a file, as text or Path")
    return Path(text)


def callback(on_text: Any) -> Any:
    """`on_text`, if it can be called.

    Raises:
        UserError: it cannot.
    """
    if on_text is not None and not callable(on_text):
        raise UserError(f"on_text is {kind_of(on_text)}; give a function of one text, or None")
    return on_text


def model_path(path: Any) -> str | Path:
    """The path or name of a model, as text or Path.

    Raises:
        UserError: neither, or a name that the system cannot look up.
    """
    text = path_text(path)
    if text is None:
        raise UserError(f"the model's path is {kind_of(path)}; give a folder or a name, as text or Path")
    if not text:
        raise UserError("the model's path is empty; give a folder or a name")
    found = text if isinstance(path, str) else Path(text)
    try:
        os.lstat(found)
    except (FileNotFoundError, NotADirectoryError):
        pass  # it may be a name; who looks for it says more
    except (OSError, ValueError) as error:  # too long, no rights, a NUL
        raise UserError(os_sentence(error, str(found)[:300])) from error
    return found


def text_or_none(name: str, value: Any) -> str | None:
    """A name such as a device, number type, provider or engine; torch's own devices and types as their names.

    Raises:
        UserError: something else, or a text without letters.
    """
    if isinstance(value, str) and not value.strip():
        raise UserError(f"{name} is empty; give its name as text, or None")
    if value is None or isinstance(value, str):
        return value
    if type(value).__module__ == "torch" and type(value).__name__ in ("device", "dtype"):
        return str(value).removeprefix("torch.")
    raise UserError(f"{name} is {kind_of(value)}; give its name as text, or None")


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        UserError: something else.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} is {_shown(value)}; give True or False")
    return value


def texts(name: str, value: Any, of_texts: bool) -> dict[str, Any]:
    """A mapping with text keys, empty for None; with `of_texts` its values are texts too.

    Raises:
        UserError: something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is {kind_of(value)}; give a mapping of names to values, or None")
    found = dict(cast(Mapping[Any, Any], value))
    wrong = [item for pair in found.items() for item in pair[: 2 if of_texts else 1] if not isinstance(item, str)]
    if wrong:
        what = "texts to texts" if of_texts else "texts to values"
        raise UserError(f"{name} holds {_shown(wrong[0])}; it must map {what}, as in {{'name': '1'}}")
    return found


def _shown(value: Any) -> str:
    """A value of the caller's in a message: short, and no line breaks whatever its repr does."""
    try:
        text = ascii(value)
    except Exception:  # repr is code of the caller's
        return kind_of(value)
    return text if len(text) <= 60 and text.isprintable() else kind_of(value)
