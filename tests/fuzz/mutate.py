"""Seeded damage for fuzzing: odd values, and mutations of values, of texts and of bytes."""

import json
import random
from typing import Any

TEXTS = (
    "", " ", "a", "..", ".", "~", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "-", "--help", "tiny", "latent",
    "a\0b", "\t\n", "\x1b[31mred\x1b]0;x\x07", "\u202eleft", "\ufeff", "[/x]", "[bold]", "{question}", "{}", "%s",
    "\ud83d", "\U0001f680" * 20, "n" * 300, "p/" * 3000, "x" * 20_000, "https://example.org/a", "null", "true", "1e999",
    ".nan", "2024-02-31", "12:30", "\u0663", "../beside", "$(id)", "<|image_pad|>", "<|latent|>", "A" * 70,
    "(a+)+$", "*", ".*" * 50, "\\", '"', "'", "`", "|", "\r", "a.b", "__class__", "file://x", "\u65e5\u672c", "cuda:99",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 3, 7, 255, 10**6, 2**31, 2**31 - 1, 2**32, 2**63, 2**63 - 1, -(2**63), 10**38, 10**60, 0.0, -0.0, 0.5,
    1e-320, 1e300, -1e300, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
YAML = (
    "!!python/object/apply:os.system [ls]", "!!int x", "!mine {a: 1}", "&a [*a]", "*nowhere", "{? [a] : b}", "[" * 60,
    "{<<: 3}", "{<<: [{a: 1}, {b: 2}]}", "9" * 5000, "0x" + "f" * 300, "1:30", "2024-02-31", "!!binary aGk=", ".nan",
    "!!set {a, b}", "|\n  text", ">-\n  folded", "'it''s'", '"\\ud83d"', '"\\0"', '"\\U7fffffff"', "@", "`", "{a: ",
    "- a\n- b", "# comment", "? a", "a: b: c", "\t", "---", "...", "!!timestamp 2001-01-01", "~", "1e-4", "[1, 2, 3]",
    "{a: 1, a: 2}", "\x85", "\u2028", "\x00", "\x1b[31m", "0o17", "1_000", "=", "<<", "!!omap [a: 1]", "!!null x",
)  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can hold, and some that it should not."""
    kind = rng.randrange(10 if depth < 3 else 7)
    if kind < 3:
        return rng.choice(TEXTS)
    if kind < 5:
        return rng.choice(NUMBERS)
    if kind == 5:
        return rng.choice((True, False, None))
    if kind == 6:
        return rng.choice(([], {}, [[]], [0] * 300, {"": ""}, [None]))
    if kind < 9:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def values(given: Any, rng: random.Random, most: int = 3) -> Any:
    """A copy of plain values with one to `most` places changed: other values, other keys, more or fewer items."""
    made = {"": json.loads(json.dumps(given))}
    for _ in range(rng.randint(1, most)):
        holder, key = rng.choice(_places(made))
        now = holder[key]
        how = rng.randrange(9)
        if how < 3:
            holder[key] = value(rng)
        elif how == 3:
            holder[key] = _near(now, rng)
        elif how == 4 and holder is not made:
            del holder[key]
        elif how == 5 and isinstance(holder, dict) and holder is not made:
            holder[rng.choice(TEXTS)] = holder.pop(key)
        elif how == 6 and isinstance(now, list):
            holder[key] = now * rng.choice((0, 2, 20))
        elif how == 7 and isinstance(now, dict):
            now[rng.choice(TEXTS)] = value(rng)
        else:
            other, other_key = rng.choice(_places(made))
            holder[key] = json.loads(json.dumps(other[other_key]))
    return made[""]


def text(given: str, rng: random.Random, snippets: tuple[str, ...] = YAML) -> str:
    """A text with one to three places changed: lines moved, doubled, cut, letters changed, snippets put in."""
    for _ in range(rng.randint(1, 3)):
        lines = given.split("\n")
        place = rng.randrange(len(lines))
        how = rng.randrange(9)
        if how == 0:
            del lines[place]
        elif how == 1:
            lines.insert(place, rng.choice(lines))
        elif how == 2:
            lines[place] = rng.choice((" ", "  ", "\t", "- ", "")) + lines[place].lstrip(" ")
        elif how in (3, 4):
            key, colon, _ = lines[place].partition(":")
            lines[place] = f"{key}{colon or ':'} {rng.choice(snippets)}"
        elif how == 5:
            lines[place] = rng.choice(snippets)
        given = "\n".join(lines)
        spot = rng.randrange(len(given) + 1)
        if how == 6:
            given = given[:spot]
        elif how == 7:
            given = (
                given[:spot] + chr(rng.choice((0, 9, 27, 123, 58, 0x85, 0xFEFF, 0xD800, 0x1F600))) + given[spot + 1 :]
            )
        elif how == 8:
            given = given[:spot] + rng.choice(snippets) + given[spot:]
    return given


def raw(given: bytes, rng: random.Random) -> bytes:
    """Bytes with flips, cuts, gaps and repeats."""
    data = bytearray(given)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(data) + 1)
        how = rng.randrange(6)
        if how == 0:
            del data[place:]
        elif how == 1:
            del data[place : place + rng.choice((1, 4, 50))]
        elif how == 2:
            data[place:place] = rng.choice((b"\0", b"\xff" * 8, rng.randbytes(5), data[:40]))
        else:
            for _ in range(rng.choice((1, 1, 3, 20))):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def encoded(given: str, rng: random.Random) -> bytes:
    """A text as the bytes of a file: nearly always UTF-8."""
    if rng.random() < 0.03:
        return given.encode(rng.choice(("utf-16", "utf-16-le", "utf-8-sig", "utf-32")), "surrogatepass")
    data = given.encode("utf-8", "surrogatepass")
    return raw(data, rng) if rng.random() < 0.1 else data


def json_file(given: Any, rng: random.Random) -> bytes:
    """Plain values as a JSON file, with changed values or a damaged text."""
    changed = values(given, rng) if rng.random() < 0.8 else given
    written = json.dumps(changed, ensure_ascii=rng.random() < 0.5)
    if changed is given or rng.random() < 0.1:
        odd = ("NaN", "Infinity", "9" * 5000, "[" * 3000, '{"a":' * 3000, '"\\ud83d"', "{}", "//", ",", "'a'", "1e999")
        written = text(written.replace(", ", ",\n"), rng, odd)
    return encoded(written, rng)


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """(container, key) of all that is in it."""
    found: list[tuple[Any, Any]] = []
    waiting = [holder]
    while waiting and len(found) < 2000:
        inner = waiting.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        for key in keys:
            found.append((inner, key))
            if isinstance(inner[key], dict | list):
                waiting.append(inner[key])
    return found


def _near(now: Any, rng: random.Random) -> Any:
    """A value like the one that is there."""
    if isinstance(now, bool) or now is None:
        return rng.choice((True, False, None, 0, 1))
    if isinstance(now, int):
        return now + rng.choice((-1, 1, 1000, -now, now, 2**31)) * rng.choice((1, 1, -1))
    if isinstance(now, float):
        return rng.choice((now * 1e9, -now, 0.0, now / 1e9, now + 1))
    if isinstance(now, str):
        place = rng.randrange(len(now) + 1)
        return now[:place] + rng.choice(TEXTS) + now[place:] if rng.random() < 0.6 else now[:place]
    return now
