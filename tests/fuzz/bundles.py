"""Seeded bundle.json files for fuzzing: any value of any type at any place of a real one, and damaged text.

`cases(seed, n)` gives (name, edit): the name says what was done, `edit` makes the new bytes of bundle.json from its
text. `attempt` opens and asks a bundle folder with it.
"""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lrkit.errors import LrkitError
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.sdk import Reasoner
from tests.hostile import program, resign

Edit = Callable[[str], bytes]
SECONDS = 20
"""No case may take longer."""

_RAW = "\0raw:"  # a text that is written without quotes
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53 + 1, 10**12, 10**39, -(10**30), 0.5, -0.0, 1e308, f"{_RAW}NaN",
    f"{_RAW}Infinity", f"{_RAW}-Infinity", f"{_RAW}1e999", f"{_RAW}{'9' * 5000}", "", " ", "a", "0", "true", "null",
    "latent.onnx", "../latent.onnx", "/etc/passwd", "samples", "bundle.json", "a\0b", "\x1b[31mred", "\u202eleft",
    f'{_RAW}"\\ud800"', "x" * 100_000, "\U0001f680", "P", "sm89", "0" * 64, [], [[]], {}, {"": None}, [None] * 50,
    ["a", 1, {}], {"a": {"b": {"c": [1]}}}, [10**15], {"latent.onnx": 1}, [0, 0, 0], [-1], ["P", "P"],
    f"{_RAW}{'[' * 100}{']' * 100}", f"{_RAW}{'[' * 50_000}", f'{_RAW}{{"a": 1, "a": 2}}', f"{_RAW}'single'",
)  # fmt: skip


def cases(seed: int, n: int) -> Iterator[tuple[str, Edit]]:
    """`n` edits."""
    rng = random.Random(f"bundle {seed}")
    for number in range(n):
        made = random.Random(rng.random())
        how = rng.choice(("value",) * 8 + ("values", "remove", "rename", "repeat", "bytes", "cut"))
        yield f"{seed}/{number} {how}", lambda text, how=how, made=made: HOW[how](text, copy.copy(made))


def attempt(folder: Path, edit: Edit, text: str, question: str) -> str:
    """Opens, asks and validates the bundle with its altered bundle.json; "taken", or what was said.

    Raises:
        Exception: whatever is no `LrkitError`, or says what a terminal must not get.
    """
    (folder / "bundle.json").write_bytes(edit(text))
    try:
        Reasoner.load(folder, threads=1, verify=False).ask(None, question, timeout=SECONDS)
        check_bundle(folder).raise_if_bad()
    except LrkitError as error:
        said = str(error)
        if not said or not all(line.isprintable() and len(line) < 2000 for line in said.splitlines()):
            raise AssertionError(f"not fit for a terminal: {said[:2000]!r}") from error
        return said
    return "taken"


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and index in the values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: list[tuple[Any, ...]] = []
    for key, inner in items:
        found += [(*path, key), *_places(inner, (*path, key))]
    return found


def _choose(values: Any, rng: random.Random) -> tuple[Any, Any]:
    """(the mapping or list, the key in it) of one place. Depth first: a place of few is as likely as one of many."""
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        key = rng.choice(keys)
        inner = values[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.15:
            return values, key
        values = inner


def _written(values: Any) -> bytes:
    text = json.dumps(values)
    while (start := text.find('"\\u0000raw:')) >= 0:
        end = json.decoder.scanstring(text, start + 1)[1]  # pyright: ignore
        raw = json.loads(text[start:end])
        text = text[:start] + raw.removeprefix(_RAW) + text[end:]
    return text.encode("utf-8", "surrogatepass")


def _value(text: str, rng: random.Random, times: int = 1) -> bytes:
    values = json.loads(text)
    for _ in range(times):
        place, key = _choose(values, rng)
        place[key] = copy.deepcopy(rng.choice(VALUES))
    return _written(values)


def _remove(text: str, rng: random.Random) -> bytes:
    values = json.loads(text)
    place, key = _choose(values, rng)
    del place[key]
    return _written(values)


def _rename(text: str, rng: random.Random) -> bytes:
    values = json.loads(text)
    place, key = _choose(values, rng)
    if isinstance(place, dict):
        place[rng.choice(("", "a", "../x", "a\0", "\x1b[2J", "__class__", "latent.onnx", "n" * 5000))] = place.pop(key)
    else:
        place.append(place[key])
    return _written(values)


def _repeat(text: str, rng: random.Random) -> bytes:
    """A key given twice, a list many times as long."""
    values = json.loads(text)
    place, key = _choose(values, rng)
    if isinstance(place, list):
        place.extend(copy.deepcopy(place) * rng.choice((1, 3000)))
        return _written(values)
    line = json.dumps(str(key))
    return text.replace(line, f"{line}: 1, {line}", 1).encode()


def _bytes(text: str, rng: random.Random) -> bytes:
    content = bytearray(text.encode())
    for _ in range(rng.choice((1, 3, 30))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def _cut(text: str, rng: random.Random) -> bytes:
    return text.encode()[: rng.randrange(len(text))] + rng.choice((b"", b"\0", b"}", b"]}", b"\xff"))


HOW: dict[str, Callable[[str, random.Random], bytes]] = {
    "value": _value,
    "values": lambda text, rng: _value(text, rng, 3),
    "remove": _remove,
    "rename": _rename,
    "repeat": _repeat,
    "bytes": _bytes,
    "cut": _cut,
}


def every_place(text: str) -> Iterator[tuple[str, Edit]]:
    """Each place of bundle.json times a few values that fit no place: nothing is left to chance."""
    for number, path in enumerate(_places(json.loads(text))):
        value = VALUES[number % len(VALUES)]

        def edit(text: str, path: tuple[Any, ...] = path, value: Any = value) -> bytes:
            values = json.loads(text)
            place = values
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = copy.deepcopy(value)
            return _written(values)

        yield f"{'.'.join(map(str, path))} = {str(value)[:40]!r}", edit


def prepare(folder: Path) -> str:
    """The text of bundle.json to edit, of a bundle with one recorded sample. Programs in one graph are replaced by ones
    that load in a moment and say nothing."""
    path = folder / "bundle.json"
    values = json.loads(path.read_text())
    plain = [role for role, entry in values["programs"].items() if not entry["steps"]]
    samples = [one | ({"token_ids": [], "latent_steps": 0} if plain else {}) for one in values["samples"][:1]]
    path.write_text(json.dumps(values | {"samples": samples}))
    for role in plain:
        program(folder, role=role)
    resign(folder)
    return path.read_text()
