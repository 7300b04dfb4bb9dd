"""Every message for users is one sentence that says what to do: the sources are read, and each `raise` looked at."""

import ast
from collections.abc import Iterator
from pathlib import Path

from lrkit import errors

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.LrkitError)
} | {"error"}
"""`error` is the class that a reader of files was given."""
HANDED_ON = (
    "{label}: {reason}",  # files.py: the reason is a sentence of this file
    "{label}{refused}",  # strict_yaml.py: likewise
    "{name}: {error}",  # sweep.py: a ConfigError, which has been looked at where it is raised
    "{file}: {error}",
    "{folder}: {error}",
    "{self._path}: {error}",
    "no program can be built for this backbone: {error}",  # of an unknown name, which lists the known ones
    "{self.path}: {wrong}",
    "{where} {problem}",
    "{run.variant}, seed {run.seed}: {error}",
    "init: {error}{hint}",
    "{os_sentence(error)}{behind}",
    "{name}: {_why_not(path, error)}",
    "{name}: {_why_unknown(content)}",
    "{clean(text)}: no such checkpoint{_how_to_give_one(text, known)}",  # resources.py: which of its sentences fits
)
"""Reviewed: these hand on a sentence that has its remedy."""


def text_of(node: ast.expr) -> str | None:
    """The text of a literal, values in braces; None where it is put together elsewhere."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = [v.value if isinstance(v, ast.Constant) else f"{{{ast.unparse(v.value)}}}" for v in node.values]  # pyright: ignore
        return "".join(map(str, parts))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        return None if left is None or right is None else left + right
    return None


def messages() -> Iterator[tuple[str, str]]:
    """(place, text) of every message that is written where it is raised, or where a list of problems gets it."""
    for file in sorted((ROOT / "lrkit").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                called = node.exc.func
                name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
                if name in KINDS and (text := text_of(node.exc.args[0])) is not None:
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", text


def test_every_message_says_what_to_do() -> None:
    """What was seen; what is allowed; what to do: there is no message without a second clause."""
    found = list(messages())
    assert len(found) > 250, "the sweep must see the package"
    assert [f"{place}: {text}" for place, text in found if "; " not in text and text not in HANDED_ON] == []


def test_every_message_is_one_sentence_without_a_full_stop() -> None:
    wrong = [
        f"{place}: {text}"
        for place, text in messages()
        if "\n" in text or text.endswith(".") or ". " in text.replace("e.g. ", "")
    ]
    assert wrong == []


def test_the_reviewed_exceptions_are_still_there() -> None:
    texts = {text for _, text in messages()}
    assert [text for text in HANDED_ON if text not in texts] == []
