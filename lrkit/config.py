"""Strict YAML <-> frozen config objects, with dotted overrides. Used by recipes, targets and suites.

A config class lives in the file of its owner and derives from `Config`; the doc of a field is the string
literal under it. Loading reports every problem at once, each on a line `source: dotted.path: problem`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lrkit.config_problems import describe, hidden_problems
from lrkit.errors import ConfigError, shown
from lrkit.strict_yaml import Dumper, load_yaml, parse_yaml

__all__ = ["Config", "dump_yaml", "load_config", "load_yaml"]

_MAX_PROBLEMS = 50
"""Lines of one message; of what is beyond, the number is told."""


class Config(BaseModel):
    """Base of all config classes: frozen, keyword only, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(
    cls: type[ConfigT], source: Path | Mapping[str, Any], overrides: Sequence[str] = (), label: str | None = None
) -> ConfigT:
    """Read `source` (a YAML file or a mapping), apply `overrides` ("a.b.c=value", "stages.0.steps=5"), validate.

    Values are taken strictly: "5" is no integer and 1 is no boolean. `label` names the source in messages; without
    one, the file or the class does.

    Raises:
        ConfigError: with one line for each problem found, in the file as well as in the overrides.
    """
    label = label or (str(source) if isinstance(source, Path) else cls.__name__)
    values = _private_copy(load_yaml(source) if isinstance(source, Path) else dict(source), label)
    problems: list[str] = []
    overridden: list[tuple[str, ...]] = []
    for override in overrides:
        try:
            overridden.append(_apply_override(values, override))
        except ConfigError as error:
            problems.append(str(error))
    config: ConfigT | None = None
    try:
        # Pydantic's JSON mode is strict, yet takes lists for tuples and text for paths.
        config = cls.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problems.extend(describe(cls, error, values, label, overridden))
        problems.extend(hidden_problems(cls, error, values, label, overridden, problems))
    if problems or config is None:
        hidden = len(problems) - _MAX_PROBLEMS
        more = [f"{label}: and {hidden} more problems; mend those above first"] if hidden > 0 else []
        raise ConfigError("\n".join([*problems[:_MAX_PROBLEMS], *more]))
    return config


def dump_yaml(config: BaseModel) -> str:
    """YAML text that `load_config` reads back as an equal object; fields in the order of the class."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=False)


def _private_copy(values: dict[str, Any], label: str) -> dict[str, Any]:
    """`values` as plain lists, mappings, texts and numbers, so that overrides change nothing of the caller's."""
    try:
        copied = json.loads(json.dumps(values, default=_plain), parse_int=_whole_number, parse_constant=_constant)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{label}: holds what a file of values could not ({error}); give texts, numbers, lists and mappings"
        ) from error
    return copied


def _whole_number(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError("a whole number of more than 64 bits")
    return int(text)


def _constant(text: str) -> float:
    if text == "NaN":
        raise ValueError("NaN")
    return float(text)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(type(value).__name__)


def _apply_override(values: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set one dotted path in `values` and return the path."""
    path, equals, text = override.partition("=")
    parts = tuple(path.strip().split("."))
    where = f"override {shown(override)}"
    if not equals or "" in parts or len(parts) > 20 or not path.isprintable():
        raise ConfigError(f"{where}: must look like key.path=value; write it as in seed=1")
    value = parse_yaml(text, f"{where}: the value ")
    *parents, last = list(parts)
    place: Any = values
    for depth, part in enumerate(parents):
        place = _step_into(place, part, where, ".".join(parents[:depth]))
    if isinstance(place, list):
        place[_list_index(place, last, where, ".".join(parents))] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(_no_keys(where, ".".join(parents), place))
    return parts


def _step_into(place: Any, part: str, where: str, path: str) -> Any:
    if isinstance(place, list):
        return place[_list_index(place, part, where, path)]
    if isinstance(place, dict):
        if place.get(part) is None:
            place[part] = {}
        return place[part]
    raise ConfigError(_no_keys(where, path, place))


def _no_keys(where: str, path: str, place: Any) -> str:
    return f"{where}: {path} is {shown(place)}, which has no keys; give it whole, as {path}=VALUE"


def _list_index(items: list[Any], part: str, where: str, path: str) -> int:
    # isdecimal alone is true of the digits of every script, and int() refuses thousands of them.
    if part.isascii() and part.isdecimal() and len(part) < 10 and int(part) < len(items):
        return int(part)
    known = f"use an index from 0 to {len(items) - 1}" if items else f"give it whole, as {path}=[...]"
    raise ConfigError(f"{where}: {path} is a list of {len(items)}; {known}")
