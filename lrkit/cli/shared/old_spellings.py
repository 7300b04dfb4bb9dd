"""Other spellings: a command line of then, or as other trainers write it, as it is written today.

`lrkit export` and `lrkit profile` each held several jobs that an option chose. Scripts and reports hold such commands,
so they go on working; the help and every message know today's spelling only.
"""

from collections.abc import Sequence
from itertools import pairwise

from lrkit.errors import UserError
from lrkit.resources import RANDOM


class Words:
    """The words behind a verb, from which options are taken out."""

    def __init__(self, words: Sequence[str]) -> None:
        self.left = list(words)

    def flag(self, option: str) -> bool:
        """Whether an option without a value was given."""
        found = option in self._options()
        self.left = [word for word in self.left if word != option] if found else self.left
        return found

    def values(self, option: str, count: int = 1) -> list[str]:
        """All values of an option, `count` each time that it stands there.

        Raises:
            UserError: fewer of them.
        """
        found: list[str] = []
        for word in self._options():
            if word.startswith(f"{option}=") and count == 1:
                found.append(word.partition("=")[2])
                self.left.remove(word)
            elif word == option:
                at = self.left.index(word)
                given = self.left[at + 1 : at + 1 + count]
                if len(given) < count:
                    wanted = "a value" if count == 1 else f"{count} values"
                    raise UserError(f"{option} needs {wanted}; write them behind it, or leave it out")
                found += given
                del self.left[at : at + 1 + count]
        return found

    def _options(self) -> list[str]:
        """Words that may be options: all before `--`."""
        end = self.left.index("--") if "--" in self.left else len(self.left)
        return self.left[:end]


def modern(given: Sequence[str]) -> list[str]:
    """The command line as it is written today.

    Raises:
        UserError: it was wrong then too.
    """
    if given and given[0] == "train":
        return _resume_auto(given)
    if not given or given[0] not in _VERBS:
        return list(given)
    words = Words(given[1:])
    model = _random_model(given[0], words)
    verb, first, last = _VERBS[given[0]](words, bool(model))
    return [verb, *first, *model, *words.left, *last]


def _resume_auto(given: Sequence[str]) -> list[str]:
    """`--resume auto` of other trainers (go on, or start where there is nothing) is what --resume alone does."""
    words = ["--resume" if word == "--resume=auto" else word for word in given]
    return words[:1] + [word for before, word in pairwise(words) if (before, word) != ("--resume", "auto")]


def _random_model(verb: str, words: Words) -> list[str]:
    """`--shape NAME --random-weights` is the model random:NAME."""
    names, said = words.values("--shape"), words.flag("--random-weights")
    if not names:
        if said:
            example = f"lrkit {verb} {RANDOM}qwen2-vl-2b"
            raise UserError(f"--random-weights is for --shape; name the shape as the model, as in {example}")
        return []
    if not said:
        raise UserError(
            f"--shape {names[-1]} has no weights; add --random-weights, or write {RANDOM}{names[-1]} instead"
        )
    return [f"{RANDOM}{names[-1]}"]


def _export(words: Words, random: bool) -> tuple[str, list[str], list[str]]:
    """(verb, words before the others, words behind them)."""
    changes = [f"dialect={name}" for name in words.values("--dialect")]
    if words.flag("--check"):
        return "preflight", [], changes
    if files := words.values("--engine-file"):
        return "engines", [], ["--take", files[-1]]
    return "export", [], changes


def _profile(words: Words, random: bool) -> tuple[str, list[str], list[str]]:
    """As `_export`; what `--sweep` was added to was the suite smoke, or that of a `random` model."""
    if reports := words.values("--compare", 2):
        return "compare", reports, []
    changes = words.values("--set")
    for option, key in _FORCED.items():
        changes += [f"{key}={value}" for value in words.values(option)]
    axes = [axis for text in words.values("--sweep") for axis in text.split()]
    if not axes and "--write-choice" not in words.left:
        return "profile", [], changes
    if not random and not any(word.partition("=")[0] == "--suite" for word in words.left):
        changes += ["--suite", "smoke"]
    return "sweep", [], [*axes, *changes]


_FORCED = {
    "--cot-tokens": "forced.cot_tokens",
    "--latent-steps": "forced.latent_steps",
    "--answer-tokens": "forced.answer_tokens",
    "--budget": "budget_sec",
}
"""Options that were values of the suite."""
_VERBS = {"export": _export, "profile": _profile}
