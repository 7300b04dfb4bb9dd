"""Strict YAML: plain values only, no surprises and no bombs. The reading half of config.py.

It reads texts, whole numbers of 64 bits, numbers, true/false, null, lists and mappings; anchors and merge keys too.
Keys are texts as they are written (`on: 3` has the key "on"), and so are dates ("2026-01-31"). It refuses tags, keys
given twice, anything above the bounds below, and anything that expands above them through anchors, which is counted
before a value is built.
"""

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lrkit.errors import ConfigError

MAX_BYTES = 1 << 20
"""Of a file; the largest that ships has 27 KB."""
MAX_VALUES = 20_000
"""Of a document, every use of an anchor counted."""
MAX_DEPTH = 40
"""Lists and mappings inside one another, through anchors too."""

Node = yaml.nodes.Node
_CORE = "tag:yaml.org,2002:"
_LARGEST = 2**63
_BEGUN = (0, 0)
"""Weight of a node that is being weighed."""
# YAML 1.1 as PyYAML has it asks for a dot and a signed exponent, where people write 1e-4, and reads 1:30 as 90.
_FLOAT = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)$")
_BOOL = re.compile(r"^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_MERGE = re.compile(r"^<<$")


class _Loader(yaml.SafeLoader):
    """Composes nodes within the bounds and resolves plain scalars as this file says; values are built by `_Builder`."""

    yaml_implicit_resolvers: dict[Any, Any] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        self._count += 1
        _check_bounds(self._count, self._depth)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class Dumper(yaml.SafeDumper):
    """SafeDumper that writes infinities and small numbers so that `parse_yaml` reads them as numbers."""


for _name, _pattern, _first in (
    ("bool", _BOOL, "yYnNtTfFoO"),
    ("float", _FLOAT, "-+0123456789."),
    ("int", _INT, "-+0123456789"),
    ("merge", _MERGE, "<"),
    ("null", _NULL, ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(_CORE + _name, _pattern, list(_first))
Dumper.add_implicit_resolver(f"{_CORE}float", _FLOAT, list("-+0123456789."))


class _Refused(Exception):
    """Carries the words that follow the file's name."""


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: no such file, not YAML, a key given twice, or something else than a mapping at the top.
    """
    values = parse_yaml(_read(path), f"{path}: ")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the top of the file must be a mapping with text keys; begin with 'key: value'")
    return values


def parse_yaml(text: str, label: str) -> Any:
    """The value that `text` stands for.

    Raises:
        ConfigError: `label`, then what is wrong in one sentence.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
        return None if root is None else _Builder().value(root)
    except _Refused as refused:
        raise ConfigError(f"{label}{refused}") from refused
    # Not only YAMLError: the scanner turns escapes and directives into numbers and characters as they come.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{label}is not valid YAML: {_reason(error)}; mend it, or put the text in quotes") from error


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or "the name cannot be a path"
        raise ConfigError(f"{path}: cannot be read: {reason}; give the path of a YAML file") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES >> 20} MiB, which no file of values is; give another")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: it is not UTF-8 text; save it as UTF-8") from error


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    words = " ".join(str(problem).split())
    return f"{words if words.isprintable() else ascii(words)}{where}"[:200]


def _check_bounds(count: int, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _Refused(f"is nested more than {MAX_DEPTH} deep; write it flatter")
    if count > MAX_VALUES:
        raise _Refused(f"holds more than {MAX_VALUES:,} values, those of its anchors counted each time; leave some out")


class _Builder:
    """From nodes to values. Weighs every node first, so that what anchors multiply is never built."""

    def __init__(self) -> None:
        self._weights: dict[int, tuple[int, int]] = {}

    def value(self, root: Node) -> Any:
        self._weigh(root)
        return self._build(root)

    def _weigh(self, node: Node) -> tuple[int, int]:
        """(values, depth) of a node with all below it. Recursion is bounded, as the loader bounds how deep nodes lie in
        the text, and an anchor inside itself is refused."""
        known = self._weights.get(id(node))
        if known == _BEGUN:
            raise _Refused(f"holds an anchor that contains itself{_at(node)}; write its values out")
        if known is not None:
            return known
        self._weights[id(node)] = _BEGUN
        count, depth = 1, 0
        for child in _children(node):
            below = self._weigh(child)
            count, depth = count + below[0], max(depth, below[1])
        _check_bounds(count, depth + 1)
        self._weights[id(node)] = (count, depth + 1)
        return count, depth + 1

    def _build(self, node: Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
            return [self._build(child) for child in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
            return self._mapping(node)
        _refuse_tag(node)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == f"{_CORE}merge":
                for one in self._to_merge(value):
                    merged = {**one, **merged}  # of several mappings the first wins, as YAML has it
                continue
            name = _key(key)
            if name in own:
                raise _Refused(f"is not valid YAML: the key {name[:60]!r} is given twice{_at(key)}; keep one of them")
            own[name] = self._build(value)
        return {**merged, **own}

    def _to_merge(self, node: Node) -> list[dict[str, Any]]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(source, yaml.MappingNode) for source in sources):
            raise _Refused(f"merges with << what is no mapping{_at(node)}; name an anchor of a mapping")
        return [self._build(source) for source in sources]


def _children(node: Node) -> list[Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _key(node: Node) -> str:
    """A key is the text that is written, so that `on` is no boolean and 1 and "1" are one."""
    if not isinstance(node, yaml.ScalarNode):
        raise _Refused(f"has a list or a mapping as a key{_at(node)}; keys must be text keys, as in 'key: value'")
    _scalar(node)  # refuses its tag, and characters that no text may hold
    return node.value


def _scalar(node: yaml.ScalarNode) -> Any:
    text, kind = node.value, node.tag.removeprefix(_CORE)
    if kind == "str" or (kind == "merge" and not node.style):
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise _Refused(f"holds a NUL or half of a surrogate pair{_at(node)}, which no text may; take it out")
        return text
    if kind == "null" and _NULL.match(text):
        return None
    if kind == "bool" and _BOOL.match(text):
        return text.lower() in {"yes", "true", "on"}
    if kind == "int" and _INT.match(text):
        return _whole_number(text.replace("_", ""), node)
    if kind == "float" and (_FLOAT.match(text) or _INT.match(text)):
        return _number(text.replace("_", ""), node)
    if kind in {"null", "bool", "int", "float"}:
        raise _Refused(f"tags {text[:40]!r} as {kind}{_at(node)}, which it is not; take the tag out")
    _refuse_tag(node)


def _whole_number(text: str, node: Node) -> int:
    # int() of thousands of digits fails or takes seconds.
    value = int(text, 0) if len(text) <= 80 else _LARGEST + 1
    if not -_LARGEST <= value < _LARGEST:
        raise _Refused(f"holds the whole number {text[:20]}...{_at(node)}, which 64 bits cannot; write a smaller one")
    return value


def _number(text: str, node: Node) -> float:
    if text.lstrip("+-")[:1] == "." and text.lstrip("+-.")[:1].isalpha():
        text = text.replace(".", "")
        if text.lower() == "nan":
            raise _Refused(f"holds .nan{_at(node)}, which is no number; write one")
        return float(text)
    value = float(int(text, 0)) if _INT.match(text) and len(text) <= 80 else float(text)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"holds the number {text[:20]}{_at(node)}, which a float cannot; write a smaller one, or .inf")
    return value


def _refuse_tag(node: Node) -> NoReturn:
    raise _Refused(f"has the tag {node.tag[:60]!r}{_at(node)}, which lrkit does not read; write plain values")


def _at(node: Node) -> str:
    return f" (line {node.start_mark.line + 1})"
