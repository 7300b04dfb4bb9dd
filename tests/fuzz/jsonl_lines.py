"""Seeded lines of a data file for fuzzing: good ones, odd ones, and both damaged.

`cases(seed, n)` gives (name, line); the name says how a case was made. A line has no line end, and may be no UTF-8.
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

Mutate = Callable[[bytes, random.Random], bytes]
GOOD = {"image": "a.png", "question": "Where now ?", "steps": ["go to 1 .", "go to 2 ."], "answer": "2", "id": "7"}
KEYS = (*GOOD, "imagee", "ID", "", "steps\0", "\U0001f680", "info", "weight_pattern", "__class__")
_TEXTS = (
    "", " ", "a", "a.png", "../a.png", "/dev/zero", ".", "pipe.png", "data:image/png;base64," + "A" * 500, "a\0b",
    "\t\n", "\x1b[31mred", "\u202eleft", "\ufeff", "<|image_pad|>", "<|latent|>", "\ud83d", "\U0001f680" * 50,
    "n" * 300, "p/" * 3000, "https://example.org/a.png", "a" * 100_000, "NaN", "2", "\u4ed6\u8bf4",
    "\u0645\u0631\u062d\u0628\u0627", "%s{}$HOME",
)  # fmt: skip
_ODD_LINES = (
    b"", b" ", b"null", b"7", b'"text"', b"[]", b"{}", b"[" * 5000, b'{"a":' * 5000, b"{" * 5000, b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}", b'{"question": 1e99999}', b'{"question": -Infinity}', b"1" * 5000, b"// comment", b"\r",
    b'{"id": ' + b"9" * 5000 + b"}", b'{"question": "\\ud800"}', b'{"\\udfff": 1}', b"'single'", b"{'question': 'q'}",
    b"\0" * 100, b"{} {}", b"\x80\x81", b'{"answer": "1", "answer": "2"}', b'{"steps": ["a", ]}', b"{\r}",
    b'{"question": "a\tb"}',
)  # fmt: skip


def cases(seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """`n` lines."""
    rng = random.Random(f"jsonl {seed}")
    for number in range(n):
        how = rng.choice(("good", "values", "values", "values", "odd"))
        line = {"good": _good, "values": _values, "odd": lambda rng: rng.choice(_ODD_LINES)}[how](rng)
        steps = [how]
        for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
            mutation = rng.choice(sorted(MUTATIONS))
            line = MUTATIONS[mutation](line, rng)
            steps.append(mutation)
        yield f"{seed}/{number} {'+'.join(steps)}", line.replace(b"\n", b" ")


def _good(rng: random.Random) -> bytes:
    return json.dumps({**GOOD, "id": str(rng.random())}, ensure_ascii=rng.random() < 0.5).encode()


def _values(rng: random.Random) -> bytes:
    """An object whose keys and values are anything."""
    values: dict[str, Any] = dict(GOOD)
    for _ in range(rng.randint(1, 4)):
        key = rng.choice(KEYS)
        if rng.random() < 0.2:
            values.pop(key, None)
        else:
            values[key] = _value(rng, 0)
    text = json.dumps(values, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def _value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth < 3 else 7)
    if kind < 4:
        return rng.choice(_TEXTS)
    if kind == 4:
        return rng.choice((0, -1, 10**18, 10**38, 0.5, 1e300, True, False, None))
    if kind == 5:
        return float(rng.choice(("nan", "inf", "-inf")))
    if kind == 6:
        return [rng.choice(_TEXTS)] * rng.choice((0, 1, 3, 70))
    if kind == 7:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): _value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _flip(line: bytes, rng: random.Random) -> bytes:
    data = bytearray(line)
    for _ in range(rng.choice((1, 1, 3, 20))):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _cut(line: bytes, rng: random.Random) -> bytes:
    return line[: rng.randrange(len(line) + 1)]


def _insert(line: bytes, rng: random.Random) -> bytes:
    pieces = (b'"', b"\\", b"\\u0000", b"\\ud83d", b"{", b"[", b",", b"\0", b"\xff", b"\xc3", b"1" * 60, b"}{")
    place = rng.randrange(len(line) + 1)
    return line[:place] + rng.choice(pieces) * rng.choice((1, 1, 100)) + line[place:]


def _splice(line: bytes, rng: random.Random) -> bytes:
    other = rng.choice((_good, _values))(rng)
    return line[: rng.randrange(len(line) + 1)] + other[rng.randrange(len(other) + 1) :]


def _utf16(line: bytes, rng: random.Random) -> bytes:
    return line.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-16-le", "utf-32")))


MUTATIONS: dict[str, Mutate] = {"flip": _flip, "cut": _cut, "insert": _insert, "splice": _splice, "utf16": _utf16}
