"""Strict YAML <-> frozen config objects, with dotted overrides. Used by recipes, targets and suites.

A config class lives in the file of its owner and derives from `Config`; the doc of a field is the string
literal under it. Loading reports every problem at once, each on a line `source: dotted.path: problem`.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from lrkit.errors import ConfigError, did_you_mean


class Config(BaseModel):
    """Base of all config classes: frozen, keyword only, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(cls: type[ConfigT], source: Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> ConfigT:
    """Read `source` (a YAML file or a mapping), apply `overrides` ("a.b.c=value", "stages.0.steps=5"), validate.

    Values are taken strictly: "5" is no integer and 1 is no boolean.

    Raises:
        ConfigError: with one line for each problem found, in the file as well as in the overrides.
    """
    label = str(source) if isinstance(source, Path) else cls.__name__
    values = load_yaml(source) if isinstance(source, Path) else dict(source)
    # Through JSON: a private copy, and pydantic's JSON mode is strict yet takes lists for tuples, text for paths.
    values = json.loads(json.dumps(values, default=_plain))
    problems: list[str] = []
    overridden: list[str] = []
    for override in overrides:
        try:
            overridden.append(_apply_override(values, override))
        except ConfigError as error:
            problems.append(str(error))
    config: ConfigT | None = None
    try:
        config = cls.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problems.extend(_describe(cls, error, values, label, overridden))
        problems.extend(_hidden_problems(cls, error, values, label, overridden, problems))
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    return config


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: no such file, not YAML, a key given twice, or something else than a mapping at the top.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    try:
        values = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: the top of the file must be a mapping with text keys; begin with 'key: value'")
    return values


def dump_yaml(config: BaseModel) -> str:
    """YAML text that `load_config` reads back as an equal object; fields in the order of the class."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=False)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            if isinstance(key_node.value, str):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes infinities and small numbers so that `_StrictLoader` reads them as numbers."""


# YAML 1.1 as PyYAML has it asks for a dot and a signed exponent; people write 1e-4.
_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
for _yaml_class in (_StrictLoader, _Dumper):
    _yaml_class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value)


def _apply_override(values: dict[str, Any], override: str) -> str:
    """Set one dotted path in `values` and return the path."""
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path or "" in path.split("."):
        raise ConfigError(f"override {override!r}: must look like key.path=value")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML; quote it") from error
    *parents, last = path.split(".")
    place: Any = values
    for depth, part in enumerate(parents):
        place = _step_into(place, part, override, ".".join(parents[:depth]))
    if isinstance(place, list):
        place[_list_index(place, last, override, ".".join(parents))] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is {place!r}, which has no keys")
    return path


def _step_into(place: Any, part: str, override: str, where: str) -> Any:
    if isinstance(place, list):
        return place[_list_index(place, part, override, where)]
    if isinstance(place, dict):
        if place.get(part) is None:
            place[part] = {}
        return place[part]
    raise ConfigError(f"override {override!r}: {where} is {place!r}, which has no keys")


def _list_index(items: list[Any], part: str, override: str, where: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ConfigError(
            f"override {override!r}: {where} is a list of {len(items)}; use an index from 0 to {len(items) - 1}"
        )
    return int(part)


def _describe(
    cls: type[BaseModel], error: ValidationError, values: Any, label: str, overridden: list[str]
) -> Iterator[str]:
    """One line per problem; what the members of a union say of one value is joined."""
    rules: dict[str, list[str]] = {}
    problems: dict[str, list[str]] = {}
    for details in error.errors(include_url=False):
        path = _locate(values, details)
        if details["type"] in _TEXT_OF:
            problems.setdefault(path, []).extend(_TEXT_OF[details["type"]](cls, details))
        else:
            rules.setdefault(path, []).append(_rule(details))
            problems.setdefault(path, [])
    for path, lines in problems.items():
        # A union member that refuses the whole value is noise where another member says what is wrong inside.
        inside = any(other.startswith(path + ".") for other in problems)
        if path in rules and not (path and inside):
            lines.insert(0, f"got {_short(_value_at(values, path))}; {', or '.join(rules[path])}")
        by_override = any(path == given or path.startswith(given + ".") for given in overridden)
        source = "override" if by_override else label
        yield from (f"{source}: {path}: {line}" if path else f"{source}: {line}" for line in lines)


def _hidden_problems(
    cls: type[BaseModel],
    error: ValidationError,
    values: dict[str, Any],
    label: str,
    overridden: list[str],
    known: list[str],
) -> list[str]:
    """What the checks of whole objects say, which pydantic runs on sound values only: run on what is left of `values`
    without the faulty ones. A line that names a value which was taken out may be its doing, and is dropped."""
    rest = json.loads(json.dumps(values))
    removed = [path for details in error.errors(include_url=False) if (path := _locate(values, details))]
    for path in removed:
        parent, _, key = path.rpartition(".")
        try:
            place = _value_at(rest, parent)
        except (KeyError, IndexError):  # went with an outer value
            continue
        if isinstance(place, dict):
            place.pop(key, None)
    try:
        cls.model_validate_json(json.dumps(rest), strict=True)
    except ValidationError as again:
        found = [line for line in _describe(cls, again, rest, label, overridden) if line not in known]
        names = [path.rpartition(".")[2] for path in removed]
        whole = all(details["type"] == "value_error" for details in again.errors(include_url=False))
        return [line for line in found if whole and not any(re.search(rf"\b{re.escape(n)}\b", line) for n in names)]
    return []


def _locate(values: Any, details: ErrorDetails) -> str:
    """The dotted path of a problem, without the union tags that pydantic puts among the keys."""
    kept: list[str] = []
    for part in details["loc"]:
        children = _children(values)
        if part in children:
            values = children[part]
            kept.append(str(part))
        elif details["type"] == "missing" and part == details["loc"][-1]:
            kept.append(str(part))
    return ".".join(kept)


def _children(values: Any) -> dict[Any, Any]:
    if isinstance(values, list):
        return dict(enumerate(values))
    return values if isinstance(values, dict) else {}


def _value_at(values: Any, path: str) -> Any:
    for part in path.split(".") if path else ():
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values


def _rule(details: ErrorDetails) -> str:
    rule = details["msg"][:1].lower() + details["msg"][1:]
    if details["type"] not in {"literal_error", "enum"}:
        return rule
    allowed = re.findall(r"'([^']*)'", str(details.get("ctx", {}).get("expected", "")))
    return rule + did_you_mean(str(details["input"]), allowed)


def _unknown_key(cls: type[BaseModel], details: ErrorDetails) -> list[str]:
    *parents, key = details["loc"]
    known = sorted({name for model in _models_at(cls, parents) for name in model.model_fields})
    return [f"unknown key; allowed: {', '.join(known)}{did_you_mean(str(key), known)}"]


def _missing(cls: type[BaseModel], details: ErrorDetails) -> list[str]:
    return ["is missing; give it a value"]


def _validator_text(cls: type[BaseModel], details: ErrorDetails) -> list[str]:
    # A validator that found several problems raises them as the lines of one message.
    return str(details.get("ctx", {}).get("error", details["msg"])).splitlines()


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
        return {annotation}
    return {model for argument in get_args(annotation) for model in _models_in(argument)}
