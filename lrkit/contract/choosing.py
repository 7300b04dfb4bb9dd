"""The most probable of several texts: the choices of a question as token ids, and their scores. Torch-free.

Place in the pipeline: `Reasoner.ask(choices=)` -> `Choices` -> encode/candidates.py -> `Candidates`, in `AskOptions` ->
an engine calls `score` behind the answer's marker -> `Scored`, in `Generated`.

A choice's score is the sum of the log probabilities of its tokens. The model reads shared beginnings once: choices form
a trie, and each of its inner nodes costs one forward pass. Where one choice begins another, the end of the answer is
counted too, for all of them, since else the longer one could never win.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, cast

import numpy as np

from lrkit.contract.choices import LETTERS, MIN_CHOICES, letter, with_choices
from lrkit.errors import DataError, UserError, shown

MAX_CHOICES = 10_000
"""Each costs a forward pass or more."""
Say = Literal["letters", "texts", "listed"]
SAYS: tuple[Say, ...] = ("letters", "texts", "listed")
By = Literal["scored", "first token", "said"]
"""scored: all its tokens were; first token: the program tells the log probabilities of no other; said: what the model
said freely names it."""


@dataclass(frozen=True)
class Choices:
    """What a question may be answered with."""

    texts: tuple[str, ...]
    """Different ones, two or more."""
    say: Say = "letters"
    """letters: the choices stand behind the question as (A), (B), ..., and the model says a letter; texts: the question
    stays as it is, and the model says the text of a choice; listed: it lists them already, and a letter is said."""
    per_token: bool = False
    """Choose by the mean log probability of a choice's tokens, not by the sum, which favours short ones."""

    @classmethod
    def of(cls, given: Any) -> "Choices | None":
        """A list of texts, or `Choices`; None stays None.

        Raises:
            DataError: fewer than two, too many, one that is no text or empty, or two that are equal.
            UserError: an unknown `say`, or a `per_token` that is no bool.
        """
        if given is None:
            return None
        made = given if isinstance(given, cls) else cls(_texts(given))
        if not isinstance(cast(Any, made.per_token), bool):
            raise UserError(f"per_token is {shown(made.per_token, 40)}; give True or False")
        return cls(_checked(_texts(made.texts), made.say), made.say, made.per_token)

    def question(self, question: str) -> str:
        """The question as the model reads it."""
        return with_choices(question, self.texts) if self.say == "letters" else question

    @property
    def said(self) -> tuple[str, ...]:
        """What the model says for each."""
        return self.texts if self.say == "texts" else tuple(map(letter, range(len(self.texts))))


def _texts(given: Any) -> tuple[str, ...]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise DataError(f"choices are {shown(given, 60)}; give a list of two texts or more")
    return tuple(cast(Iterable[str], given))


def _checked(texts: tuple[str, ...], say: Any) -> tuple[str, ...]:
    if say not in SAYS:
        raise UserError(f"say is {shown(say, 40)}; give one of {', '.join(SAYS)}")
    most = MAX_CHOICES if say == "texts" else len(LETTERS)
    if not MIN_CHOICES <= len(texts) <= most:
        more = ", or more of them with say texts" if most < len(texts) <= MAX_CHOICES else ""
        raise DataError(f"there are {len(texts)} choices; give {MIN_CHOICES} to {most}{more}")
    seen: dict[str, int] = {}
    for number, text in enumerate(texts, start=1):
        if not isinstance(cast(Any, text), str) or not text.strip():
            raise DataError(f"choice {number} is {shown(text, 40)}; give a text that is not empty")
        if (first := seen.setdefault(" ".join(text.split()), number)) != number:
            raise DataError(f"choices {first} and {number} are both {shown(text, 60)}; give different ones")
    return texts


@dataclass
class Node:
    """A beginning that some choices share."""

    children: "dict[int, Node]" = field(default_factory=lambda: dict[int, Node]())
    choice: int | None = None
    """The choice that ends here."""


@dataclass(frozen=True)
class Candidates:
    """Choices as an engine scores them."""

    choices: Choices
    ids: tuple[tuple[int, ...], ...]
    """Tokens of each, as they are spoken behind the marker; no two are equal."""
    ends: tuple[int, ...]
    """Tokens that end an answer."""
    marker: tuple[int, ...]
    """Tokens of the answer's marker."""
    separator: tuple[int, ...] = ()
    """Tokens between two spoken pieces."""

    @property
    def counts_end(self) -> bool:
        """Whether one choice begins another."""
        ordered = sorted(self.ids)
        return any(longer[: len(short)] == short for short, longer in pairwise(ordered))

    def trie(self) -> Node:
        """The choices by their beginnings."""
        root = Node()
        for choice, ids in enumerate(self.ids):
            node = root
            for token in ids:
                node = node.children.setdefault(token, Node())
            node.choice = choice
        return root


class Place(Protocol):
    """Where an answer stands: what may come next, and how it goes on. Never changed."""

    def log_probabilities(self) -> np.ndarray:
        """(W,) float64 of the next word; minus infinity for tokens that are no words."""
        ...

    def after(self, token: int) -> "Place":
        """The place behind one more token: a forward pass."""
        ...


@dataclass(frozen=True)
class Scored:
    """How probable each choice is."""

    sums: tuple[float, ...]
    """Log probabilities."""
    lengths: tuple[int, ...]
    """Tokens that each is the sum of."""
    greedy: tuple[bool, ...]
    """Whether each of its tokens is the one that the model prefers."""
    passes: int
    """Forward passes that this took."""
    by: By = "scored"

    def scores(self, per_token: bool) -> tuple[float, ...]:
        """The sums, or means."""
        return tuple(s / n for s, n in zip(self.sums, self.lengths, strict=True)) if per_token else self.sums

    def best(self, per_token: bool) -> int:
        """The most probable choice; of equals the first."""
        return int(np.argmax(self.scores(per_token)))


def score(candidates: Candidates, start: Place) -> Scored:
    """Scores all choices from `start`.

    Raises:
        DataError: a choice holds a token that the model has no row for.
    """
    count, ending = len(candidates.ids), candidates.counts_end
    sums, greedy = [0.0] * count, [True] * count
    passes = 0
    # A place is made when its turn comes: so many are held as the trie is deep, whatever its width.
    waiting: list[tuple[Node, Place, int | None, float, bool]] = [(candidates.trie(), start, None, 0.0, True)]
    while waiting:
        node, place, token, total, preferred = waiting.pop()
        if node.choice is not None:
            sums[node.choice], greedy[node.choice] = total, preferred
        if not node.children and not (ending and node.choice is not None):
            continue
        if token is not None:
            place, passes = place.after(token), passes + 1
        found = place.log_probabilities()
        best = int(found.argmax())
        if ending and node.choice is not None:
            sums[node.choice] += float(np.logaddexp.reduce(found[list(candidates.ends)]))
            greedy[node.choice] = preferred and best in candidates.ends
        for following, child in node.children.items():
            _check_token(candidates, following, len(found))
            waiting.append((child, place, following, total + float(found[following]), preferred and following == best))
    lengths = tuple(len(ids) + ending for ids in candidates.ids)
    return Scored(tuple(sums), lengths, tuple(greedy), passes)


def score_first(candidates: Candidates, log_probabilities: np.ndarray) -> Scored:
    """Scores from the first tokens alone, without a pass; these differ.

    Raises:
        DataError: as `score`.
    """
    firsts = [ids[0] for ids in candidates.ids]
    for token in firsts:
        _check_token(candidates, token, len(log_probabilities))
    sums = tuple(float(log_probabilities[token]) for token in firsts)
    best = int(log_probabilities.argmax())
    whole = all(len(ids) == 1 for ids in candidates.ids)
    greedy = tuple(token == best for token in firsts)
    return Scored(sums, (1,) * len(firsts), greedy, 0, "scored" if whole else "first token")


def log_softmax(logits: np.ndarray, latent_id: int) -> np.ndarray:
    """(W,) float64 log probabilities of words; `<|latent|>` is none."""
    wide = np.array(logits, np.float64).reshape(-1)
    wide[latent_id] = -np.inf
    shifted = wide - wide.max()
    return shifted - np.log(np.exp(shifted).sum())


def _check_token(candidates: Candidates, token: int, vocabulary: int) -> None:
    if not 0 <= token < vocabulary:
        which: Sequence[str] = [
            text for text, ids in zip(candidates.choices.said, candidates.ids, strict=True) if token in ids
        ]
        raise DataError(
            f"choice {shown(which[0], 60)} holds the token {token}, and the model has {vocabulary} words; use others"
        )
