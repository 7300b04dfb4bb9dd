"""Scores of choices by their trie are those of each choice alone, whatever the choices and whatever the model."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lrkit.contract.choosing import Candidates, Choices, log_softmax, score, score_first
from lrkit.errors import DataError

WORDS, LATENT, ENDS = 9, 5, (0, 7)
tokens = st.integers(1, WORDS - 1).filter(lambda token: token not in (LATENT, *ENDS))
choices = st.lists(st.lists(tokens, min_size=1, max_size=4).map(tuple), min_size=2, max_size=12, unique=True)


@dataclass
class Model:
    """Random logits behind each beginning; counts how often it is asked to go on."""

    seed: int
    passes: int = 0

    def log_probabilities(self, before: tuple[int, ...]) -> np.ndarray:
        return log_softmax(np.random.default_rng([self.seed, *before]).normal(0, 2, WORDS), LATENT)


@dataclass
class Place:
    model: Model
    before: tuple[int, ...] = ()

    def log_probabilities(self) -> np.ndarray:
        return self.model.log_probabilities(self.before)

    def after(self, token: int) -> "Place":
        self.model.passes += 1
        return Place(self.model, (*self.before, token))


def among(ids: list[tuple[int, ...]]) -> Candidates:
    texts = tuple(f"choice {number}" for number in range(len(ids)))
    return Candidates(Choices(texts, "texts"), tuple(ids), ENDS, (3,))


def alone(model: Model, ids: tuple[int, ...], with_end: bool) -> tuple[float, bool]:
    """Log probability of one choice, and whether it is what the model would say, token after token."""
    total, greedy = 0.0, True
    for place, token in enumerate(ids):
        found = model.log_probabilities(ids[:place])
        total, greedy = total + found[token], greedy and found.argmax() == token
    if with_end:
        found = model.log_probabilities(ids)
        total, greedy = total + np.log(sum(np.exp(found[end]) for end in ENDS)), greedy and found.argmax() in ENDS
    return total, greedy


@given(choices, st.integers(0, 99))
def test_a_trie_scores_each_choice_as_if_it_were_alone(ids: list[tuple[int, ...]], seed: int) -> None:
    model, candidates = Model(seed), among(ids)
    found = score(candidates, Place(model))
    begins_another = any(a != b and b[: len(a)] == a for a in ids for b in ids)
    assert candidates.counts_end == begins_another
    wanted = [alone(model, one, begins_another) for one in ids]
    assert found.sums == pytest.approx([total for total, _ in wanted])
    assert found.greedy == tuple(greedy for _, greedy in wanted)
    assert found.lengths == tuple(len(one) + begins_another for one in ids)
    assert found.passes == model.passes
    best = max(range(len(ids)), key=lambda one: wanted[one][0])
    assert found.best(False) == best


@given(choices, st.integers(0, 99))
def test_shared_beginnings_are_read_once(ids: list[tuple[int, ...]], seed: int) -> None:
    model, candidates = Model(seed), among(ids)
    score(candidates, Place(model))
    inner = {one[:length] for one in ids for length in range(1, len(one))}
    assert model.passes == len(inner | set(ids)) if candidates.counts_end else model.passes == len(inner)


@given(choices, st.integers(0, 99))
def test_probabilities_of_all_choices_are_at_most_one(ids: list[tuple[int, ...]], seed: int) -> None:
    found = score(among(ids), Place(Model(seed)))
    assert np.exp(found.sums).sum() <= 1 + 1e-9
    assert found.best(True) == int(np.argmax(np.array(found.sums) / found.lengths))


@given(choices, st.integers(0, 99))
def test_first_tokens_score_as_the_trie_does_where_they_are_all(ids: list[tuple[int, ...]], seed: int) -> None:
    firsts = [one[:1] for one in ids]
    assume(len(set(firsts)) == len(firsts))
    place = Place(Model(seed))
    first = score_first(among(ids), place.log_probabilities())
    assert first.sums == score(among(firsts), place).sums
    assert first.by == ("scored" if ids == firsts else "first token")


def test_a_choice_with_a_token_that_the_model_lacks_is_named() -> None:
    for wrong in (WORDS, 10**9, -1):
        candidates = among([(1,), (2, wrong)])
        with pytest.raises(DataError, match=r"choice 'letter|choice 'choice 1' holds the token"):
            score(candidates, Place(Model(0)))


def test_a_thousand_choices_hold_few_places_at_once() -> None:
    ids = [(1 + a % 4, 1 + b % 4, 1 + c % 4, 1 + d % 4) for a in range(4) for b in range(4) for c in range(4)
           for d in range(4)]  # fmt: skip
    model = Model(1)
    found = score(among(list(dict.fromkeys(ids))), Place(model))
    assert len(found.sums) == 256 and model.passes == 4 + 16 + 64
