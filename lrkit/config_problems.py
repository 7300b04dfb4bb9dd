"""Says what is wrong with the values of a config: one line per problem, each with its place and a remedy.

Place in the pipeline: pydantic's ValidationError -> `describe` -> the lines of config.py's ConfigError.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lrkit.errors import did_you_mean, shown

_MOST_DETAILS = 200
"""Of pydantic's findings in one set of values: a list of thousands of wrong items is one mistake."""

_LONGEST_LINE = 1000
"""A validator puts names into its text, and names may be books."""
Path = tuple[str, ...]
"""Keys and indices, as text, from the top to a value."""


def describe(
    cls: type[BaseModel], error: ValidationError, values: Any, label: str, overridden: Sequence[Path]
) -> Iterator[str]:
    """One line per problem; what the members of a union say of one value is joined."""
    rules: dict[Path, list[str]] = {}
    problems: dict[Path, list[str]] = {}
    for details in _details(error):
        path = _locate(values, details)
        if details["type"] in _TEXT_OF:
            problems.setdefault(path, []).extend(_TEXT_OF[details["type"]](cls, details))
        else:
            rules.setdefault(path, []).append(_rule(details))
            problems.setdefault(path, [])
    for path, lines in problems.items():
        # A union member that refuses the whole value is noise where another member says what is wrong inside.
        inside = any(len(other) > len(path) and other[: len(path)] == path for other in problems)
        if path in rules and not (path and inside):
            allowed = ", or ".join(dict.fromkeys(rules[path]))
            lines.insert(0, f"got {_short(_value_at(values, path))}; {allowed}")
        by_override = any(path[: len(given)] == given for given in overridden)
        source = "override" if by_override else label
        where = f"{source}: {_dotted(path)}" if path else source
        yield from (f"{where}: {line}" for line in lines)


def hidden_problems(
    cls: type[BaseModel],
    error: ValidationError,
    values: dict[str, Any],
    label: str,
    overridden: Sequence[Path],
    known: Sequence[str],
) -> list[str]:
    """What the checks of whole objects say, which pydantic runs on sound values only: run on what is left of `values`
    without the faulty ones. A line that names a value which was taken out may be its doing, and is dropped."""
    rest = json.loads(json.dumps(values))
    removed = [path for details in _details(error) if (path := _locate(values, details))]
    for *parent, key in removed:
        try:
            place = _value_at(rest, parent)
        except (KeyError, IndexError):  # went with an outer value
            continue
        if isinstance(place, dict):
            place.pop(key, None)
    try:
        cls.model_validate_json(json.dumps(rest), strict=True)
    except ValidationError as again:
        found = [line for line in describe(cls, again, rest, label, overridden) if line not in known]
        names = {path[-1] for path in removed}
        whole = all(details["type"] == "value_error" for details in _details(again))
        return [line for line in found if whole and not any(re.search(rf"\b{re.escape(n)}\b", line) for n in names)]
    return []


def _details(error: ValidationError) -> list[ErrorDetails]:
    return list(islice(error.errors(include_url=False), _MOST_DETAILS))


def _dotted(path: Path) -> str:
    return ".".join(part if part.isprintable() and len(part) <= 60 else shown(part, 60) for part in path)


def _locate(values: Any, details: ErrorDetails) -> Path:
    """The place of a problem, without the union tags that pydantic puts among the keys."""
    kept: list[str] = []
    for part in details["loc"]:
        children = _children(values)
        if part in children:
            values = children[part]
            kept.append(str(part))
        elif details["type"] == "missing" and part == details["loc"][-1]:
            kept.append(str(part))
    return tuple(kept)


def _children(values: Any) -> dict[Any, Any]:
    if isinstance(values, list):
        return dict(enumerate(values))
    return values if isinstance(values, dict) else {}


def _value_at(values: Any, path: Sequence[str]) -> Any:
    for part in path:
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values


def _rule(details: ErrorDetails) -> str:
    if details["type"] == "union_tag_invalid":  # pydantic's own words hold the whole tag
        found: dict[str, Any] = details.get("ctx", {})
        allowed = re.findall(r"'([^']*)'", str(found.get("expected_tags", "")))
        hint = did_you_mean(str(found.get("tag", ""))[:60], allowed)
        return f"{str(found.get('discriminator')).strip(chr(39))} must be one of {', '.join(allowed)}{hint}"
    rule = details["msg"][:1].lower() + details["msg"][1:]
    if details["type"] not in {"literal_error", "enum"}:
        return rule
    allowed = re.findall(r"'([^']*)'", str(details.get("ctx", {}).get("expected", "")))
    return rule + did_you_mean(str(details["input"])[:60], allowed)


def _unknown_key(cls: type[BaseModel], details: ErrorDetails) -> list[str]:
    *parents, key = details["loc"]
    known = sorted({name for model in _models_at(cls, parents) for name in model.model_fields})
    return [f"unknown key; allowed: {', '.join(known)}{did_you_mean(str(key)[:60], known)}"]


def _missing(cls: type[BaseModel], details: ErrorDetails) -> list[str]:
    return ["is missing; give it a value"]


def _validator_text(cls: type[BaseModel], details: ErrorDetails) -> list[str]:
    # A validator that found several problems raises them as the lines of one message.
    lines = str(details.get("ctx", {}).get("error", details["msg"])).splitlines()
    return [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..." for line in lines]


_TEXT_OF: dict[str, Callable[[type[BaseModel], ErrorDetails], list[str]]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "value_error": _validator_text,
}


def _short(value: Any, limit: int = 80) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _models_at(cls: type[BaseModel], location: Sequence[str | int]) -> set[type[BaseModel]]:
    """The config classes that may stand at `location` below `cls`; several where a union allows several."""
    found: set[type[BaseModel]] = {cls}
    for part in location:
        below: set[type[BaseModel]] = set()
        for model in found:
            if isinstance(part, str) and part in model.model_fields:
                below |= _models_in(model.model_fields[part].annotation)
        # An index, a mapping key or the tag of a union does not leave the classes collected for the field.
        found = below or found
    return found


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # A class that stands for the rows of a table (lrkit/data/sources.py) names them.
        alternatives: Callable[[], list[type[BaseModel]]] | None = getattr(annotation, "alternatives", None)
        return {annotation} if alternatives is None else set(alternatives())
    return {model for argument in get_args(annotation) for model in _models_in(argument)}
