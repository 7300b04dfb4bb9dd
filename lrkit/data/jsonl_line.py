"""Reads one line of a data file, or says why it cannot be used. Imports no torch.

Place in the pipeline: jsonl.py reads a file line by line -> `parse_line` -> `Sample`. Lines come from anywhere, so
each reason is one short phrase, whatever the line holds.
"""

import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lrkit.contract.sample import Sample
from lrkit.errors import DataError, did_you_mean, one_line, shown
from lrkit.files import load_strict
from lrkit.pictures.input import kind_of

KEYS = ("image", "question", "steps", "answer", "id")
MAX_IMAGES = 64
"""Pictures of one line."""
MAX_REASONS = 5
"""Reasons that are given for one line."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LONGEST_NAME = 255
"""Bytes of one part of a path that file systems take."""


def parse_line(raw: bytes, folder: Path, number: int, answered: bool = True) -> Sample | None:
    """The sample of one line, None for a blank one; pictures are looked for in `folder`. Where it need not be
    `answered`, steps and answer may be left out.

    Raises:
        DataError: with the reasons why the line cannot be used.
    """
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    if not text:
        return None
    values = _load(text)
    if not isinstance(values, dict):
        raise DataError(f"holds {kind_of_json(values)}; write an object with {', '.join(KEYS)}")
    problems = list(islice(_problems(values, folder, answered), MAX_REASONS))
    if problems:
        raise DataError("; ".join(problems))
    return Sample(
        images=tuple(folder / name for name in _image_names(values)),
        question=values["question"],
        steps=tuple(values.get("steps", ())),
        answer=values.get("answer", ""),
        id=values.get("id", f"line {number}"),
        info={"line": number},
    )


def _load(text: str) -> Any:
    try:
        return load_strict(text)
    except json.JSONDecodeError as error:
        if "\0" in text:
            raise DataError("holds NUL bytes, as a file in UTF-16 does; save it as UTF-8") from error
        where = f"{error.msg} at column {error.colno}"
        raise DataError(f"is not valid JSON ({where}); write one object per line") from error
    except ValueError as error:
        raise DataError(str(error)) from error


def _problems(values: dict[str, Any], folder: Path, answered: bool) -> Iterator[str]:
    for key in values:
        if key not in KEYS:
            near = did_you_mean(key, KEYS) if len(key) < 40 else ""
            yield f"unknown key {one_line(repr(key), 60)}; allowed: {', '.join(KEYS)}{near}"
    for key in ("question", "answer"):
        if key in values or key == "question" or answered:
            yield from text_problems(values.get(key), key, missing=key not in values)
    if "id" in values:
        yield from text_problems(values["id"], "id", missing=False)
    steps = values.get("steps") if answered or "steps" in values else []
    if not isinstance(steps, list):
        seen = f"is {kind_of_json(steps)}" if "steps" in values else "is missing"
        yield f"steps {seen}; give a list of texts, [] for none"
    else:
        for index, step in enumerate(steps):
            yield from text_problems(step, f"steps[{index}]", missing=False)
    yield from _image_problems(values, folder)


def text_problems(value: Any, name: str, missing: bool) -> Iterator[str]:
    """Why a value is no text that can be used."""
    if missing:
        yield f"{name} is missing; give a text"
    elif not isinstance(value, str):
        yield f"{name} is {kind_of_json(value)}; give a text in quotes"
    elif not value.strip():
        yield f"{name} is empty; give a text"
    elif found := _CONTROL.search(value):
        yield f"{name} holds the control character U+{ord(found[0]):04X} at place {found.start() + 1}; take it out"


def _image_problems(values: dict[str, Any], folder: Path) -> Iterator[str]:
    names = _image_names(values)
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        what = "empty" if names == [""] else kind_of_json(values["image"])
        yield f"image is {what}; give a path or a list of paths"
        return
    if len(names) > MAX_IMAGES:
        yield f"image lists {len(names)} pictures; give at most {MAX_IMAGES}"
        return
    for name in names:
        if name.startswith(("http://", "https://", "data:")):
            yield f"image {shown(name, 60)} is no path; save the picture and give its path relative to the data file"
        elif (reason := why_no_file(folder, name)) is not None:
            yield f"image {shown(name, 300)} {reason}"


def why_no_file(folder: Path, name: str) -> str | None:
    """Why a path in `folder` names no picture file; None where it does."""
    if "\0" in name:
        return "holds a NUL character; give a path"
    if max(len(part.encode()) for part in name.split("/")) > _LONGEST_NAME:
        return "is too long for a path; where it is base64, save the picture and give its path"
    if os.path.isfile(folder / name):
        return None
    if os.path.exists(folder / name):
        return "is no ordinary file; give the path of a picture"
    return f"is not there; paths are relative to {folder}"


def _image_names(values: dict[str, Any]) -> Any:
    """The value of `image` as a list where it is a path or left out; otherwise as it is."""
    names = values.get("image", [])
    return [names] if isinstance(names, str) else names


def kind_of_json(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), kind_of(value))
