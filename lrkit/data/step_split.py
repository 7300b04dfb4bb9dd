"""A written solution to reasoning steps: paragraphs or sentences, merged evenly where they are too many. Torch-free.

Place in the pipeline: rationale of a public data set -> `split_steps` -> `Sample.steps`; collate.py merges the steps of
a sample into its latent steps by the same `merge_steps`.

A point ends a sentence where a space and the beginning of another sentence follow. It does not within a number (3.5),
an abbreviation (e.g., Dr., U.S.), an initial, a formula ($...$, \\(...\\), \\[...\\]) or brackets.
"""

# ruff: noqa: RUF001 (quotation marks and points of other scripts end sentences too)

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, TypeVar

StepT = TypeVar("StepT")
SplitBy = Literal["auto", "paragraphs", "sentences"]
"""auto: by paragraphs where there are several, else by sentences."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER_LAST = _words(
    "e.g i.e cf vs viz al mr mrs ms dr prof st sr jr fig figs eq eqs ch no nos pp approx ca resp dept gov sen rep hon "
    "capt lt sgt"
)
"""Abbreviations behind which a sentence goes on."""
_MAYBE_LAST = _words(
    "etc a.m p.m u.s u.k u.n ph.d b.c a.d inc ltd co corp jan feb mar apr jun jul aug sep sept oct nov dec ft lb oz hr "
    "hrs sq cm mm km kg sec min max vol est"
)
"""Those that may end one: so where a word follows that begins sentences."""
_STARTERS = _words(
    "the it its this these that those he she they we you i in so thus therefore hence however but and as if when while "
    "for on at a an there then now first second third next last finally because since to of from by with also both "
    "each all no not one two other another here what which who how after before although based given since looking"
)
_CHOSEN = _words("option choice answer figure point vitamin letter type class group grade plan step part case")
"""Words before a single capital that is no initial."""

_BLANK = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_CONTINUES = re.compile(r"\s*(?:[=+*/<>≈≤≥→×÷±&|,;:)\]]|-\s|\\(?!\(|\[)|[a-z])")
"""How a line begins that goes on with the one before."""
_ITEM = re.compile(r"\s*(?:[-*•]|\(?\d{1,2}[.)]|(?i:step)\s+\d+\b)\s")
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*")
_BEGINS = re.compile(r"\s*[\"'“‘(\[*_]*(?:[^\W\d_a-z]|\d|\$|\\[\(\[]|\\[a-z])")
_FORMULA = re.compile(
    r"\$\$.{1,400}?\$\$|(?<![\\\w])\$(?=\S)[^$\n]{0,200}?[\\^_={}][^$\n]{0,200}?\$|\\\(.{1,400}?\\\)|\\\[.{1,400}?\\\]",
    re.DOTALL,
)
"""One dollar sign alone is money: a formula between two holds a sign of TeX. Bounded, as all texts of strangers are."""
_BRACKETS = re.compile(r"\([^()\n]{0,400}\)|\[[^\[\]\n]{0,400}\]")
_NUMBERING = re.compile(
    r"(?:(?:step|part|case|no|question|hint)\s+)?\(?(?:\d{1,2}|[A-Za-z]|[ivx]{1,4})[.)]", re.IGNORECASE
)


_NEAR = 80
"""Characters that are looked at around a point."""


def merge_steps(steps: Sequence[StepT], max_latent_steps: int) -> tuple[tuple[StepT, ...], ...]:
    """The steps that each latent step stands for: one each, or, with more steps than latents, merged evenly in order.

    Group sizes differ by at most one. Without latents there is no group.
    """
    num_groups = min(len(steps), max_latent_steps)
    bounds = [len(steps) * index // num_groups for index in range(num_groups + 1)] if num_groups else [0]
    return tuple(tuple(steps[start:end]) for start, end in pairwise(bounds))


def joined_steps(steps: Sequence[str], most: int | None) -> tuple[str, ...]:
    """The steps as they are; with more than `most`, merged evenly into so many. None merges none."""
    return tuple(steps) if most is None else tuple(" ".join(group) for group in merge_steps(steps, most))


def split_steps(text: str, by: SplitBy = "auto") -> tuple[str, ...]:
    """The steps of a solution in order, each on one line; () for an empty text."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n\n")
    parts = [] if by == "sentences" else _paragraphs(plain)
    if by == "sentences" or (by == "auto" and len(parts) < 2):
        parts = [sentence for block in _BLANK.split(plain) for sentence in _sentences(block)]
    return tuple(step for part in parts if (step := " ".join(part.split())))


def _paragraphs(text: str) -> list[str]:
    """Blocks between blank lines; without any, lines, but for those that go on with the line before."""
    if len(blocks := [block for block in _BLANK.split(text) if block.strip()]) > 1:
        return blocks
    found: list[str] = []
    for line in text.split("\n"):
        if found and _CONTINUES.match(line) and not _ITEM.match(line):
            found[-1] += "\n" + line
        elif line.strip():
            found.append(line)
    # Lines that break in the middle of a sentence are those of one paragraph.
    ended = sum(bool(re.search(r"[.!?:。！？…][\"'”’)\]$]*\s*$", line)) for line in found)
    return found if 2 * ended >= len(found) else ["\n".join(found)]


def _sentences(block: str) -> Iterator[str]:
    closed = bytearray(len(block))  # 1 within formulas and brackets
    for pattern in (_FORMULA, _BRACKETS):
        for first, last in (match.span() for match in pattern.finditer(block)):
            closed[first + 1 : last - 1] = b"\1" * max(0, last - first - 2)
    start = 0
    for end in _END.finditer(block):
        if not closed[end.start()] and _ends(block[start : end.end()], block[end.end() : end.end() + _NEAR]):
            yield block[start : end.end()]
            start = end.end()
    yield block[start:]


def _ends(piece: str, behind: str) -> bool:
    """Whether a piece that stops at a point is a sentence, and another one begins behind it."""
    if not behind.strip():
        return True
    if piece[-1] in "。！？”’」』）" and not behind[0].isspace():
        return True
    if not _BEGINS.match(behind) or (len(piece) < _NEAR and _NUMBERING.fullmatch(piece.strip())):
        return False
    *earlier, last = piece[-_NEAR:].split()
    bare = last.rstrip("\"'”’)]")
    if not bare.endswith(".") or bare.endswith(".."):
        return True
    following = re.sub(r"\W", "", behind.split()[0]).lower()
    return _ends_with(bare.lstrip("(\"'“‘[").rstrip("."), earlier[-1] if earlier else "", following)


def _ends_with(word: str, before: str, following: str) -> bool:
    """Whether a sentence ends with a word and a point; `before` and `following` are its neighbours."""
    starts = following in _STARTERS
    if word.lower() in _NEVER_LAST:
        return word.lower() == "no" and starts
    if word.lower() in _MAYBE_LAST or re.fullmatch(r"(?:[A-Za-z]\.)+[A-Za-z]", word):
        return starts
    if len(word) == 1 and word.isupper() and before:
        return starts or before.lower() in _CHOSEN or not before.strip("(\"'“‘")[:1].isupper()
    return not (word == "p" and following.isdigit())
