"""The probe's parts: interventions, donors, changed pictures, and the statistics of the verdict."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lrkit.contract.sample import Sample
from lrkit.data.trail import trail_set
from lrkit.data.trail_changed import is_trail, other_trail, signs_of, walk, with_other_sign
from lrkit.errors import UserError
from lrkit.probe import interventions
from lrkit.probe.asking import State, Told
from lrkit.probe.donors import Donor, _of_the_set  # pyright: ignore[reportPrivateUsage]
from lrkit.probe.effects import accuracy_with, effect
from lrkit.probe.options import ALWAYS, PARTS, parse_parts
from lrkit.probe.verdict import BY_LOOKS, CARRY, IN_PART, UNGAINFUL, UNUSED, Evidence, judge

RNG = np.random.default_rng(0)


def state(seed: int, visual: int = 5) -> State:
    rng = np.random.default_rng(seed)
    return State(rng.standard_normal(8).astype(np.float32), rng.random(visual).astype(np.float32))


STATES = {0: [state(1), state(2), state(3)], 1: [state(4), state(5)], 2: []}
TOLD = {number: Told("a", True, len(states), states) for number, states in STATES.items()}


def test_zero_and_noise_keep_the_saliency_and_the_length() -> None:
    given = state(1)
    assert (
        not interventions.zero(0, 1, given).hidden.any() and interventions.zero(0, 1, given).saliency is given.saliency
    )
    noisy = interventions.noise(0)
    drawn = noisy(0, 1, given).hidden
    assert np.linalg.norm(drawn) == pytest.approx(np.linalg.norm(given.hidden), rel=1e-5)
    assert abs(drawn @ given.hidden) < 0.99 * np.linalg.norm(given.hidden) ** 2
    assert np.array_equal(drawn, noisy(0, 1, given).hidden), "drawn alike however often it is asked"
    others = [noisy(1, 1, given), noisy(0, 2, given), interventions.noise(1)(0, 1, given)]
    assert not any(np.array_equal(drawn, other.hidden) for other in others)


def test_the_mean_is_of_the_questions_that_take_the_step() -> None:
    change = interventions.mean_of(TOLD)
    second = (STATES[0][1].hidden + STATES[1][1].hidden) / 2
    assert np.allclose(change(0, 2, state(9)).hidden, second, atol=1e-6)
    assert np.allclose(change(0, 3, state(9)).hidden, STATES[0][2].hidden, atol=1e-6)


def test_a_donor_gives_latents_and_places_but_no_places_of_another_picture() -> None:
    change, at_two = interventions.donated(STATES), interventions.donated(STATES, only=2)
    given = change(1, 2, state(9))
    assert np.array_equal(given.hidden, STATES[1][1].hidden) and given.saliency is STATES[1][1].saliency
    wide = state(9, visual=7)
    assert change(1, 2, wide).saliency is wide.saliency
    assert at_two(1, 1, wide) is wide and np.array_equal(at_two(1, 2, wide).hidden, STATES[1][1].hidden)


def test_shuffled_moves_something_and_frozen_holds() -> None:
    for seed in range(20):
        change = interventions.shuffled(STATES, seed)
        order = [change(0, step, state(9)) for step in (1, 2, 3)]
        assert {id(one) for one in order} == {id(one) for one in STATES[0]}
        assert [id(one) for one in order] != [id(one) for one in STATES[0]]
    frozen = interventions.frozen(STATES, 2)
    kept = state(9)
    assert frozen(0, 1, kept) is kept and frozen(0, 2, kept) is frozen(0, 3, kept) is STATES[0][1]


def test_random_places_are_the_same_weights_elsewhere() -> None:
    given = state(1, visual=40)
    moved = interventions.random_places(0)(0, 1, given)
    assert given.saliency is not None and moved.saliency is not None and moved.hidden is given.hidden
    assert sorted(moved.saliency) == sorted(given.saliency) and not np.array_equal(moved.saliency, given.saliency)
    bare = replace(given, saliency=None)
    assert interventions.random_places(0)(0, 1, bare) is bare


@pytest.mark.parametrize("kind", ["main", "long", "faint", "wide", "woven"])
def test_another_trail_and_another_sign_on_every_kind_of_board(kind: str) -> None:
    for number, sample in enumerate(trail_set(kind, "test", 16)):  # pyright: ignore[reportArgumentType]
        assert is_trail(sample)
        rng, rooms = np.random.default_rng(number), sample.info["rooms"]
        assert walk(signs_of(sample.info), rooms[0], len(rooms) - 1) == rooms
        other = other_trail(sample, rng)
        if other is not None:
            assert other.images is sample.images and other.answer != sample.answer
            theirs = other.info["rooms"]
            assert walk(signs_of(sample.info), theirs[0], len(theirs) - 1) == theirs
            assert all(mine != its for mine, its in zip(rooms, theirs, strict=True)), "trails that meet end alike"
            assert other.question != sample.question and len(other.question) - len(sample.question) in (-1, 0, 1)
        hop = number % (len(rooms) - 1) + 1
        changed = with_other_sign(sample, hop, rng)
        assert changed is not None and changed.question == sample.question and changed.answer != sample.answer
        assert changed.info["rooms"][:hop] == rooms[:hop] and changed.info["rooms"][hop] != rooms[hop]
        picture, (left, top, right, bottom) = sample.info["looks"][hop - 1][0]
        before, after = ([np.asarray(one) for one in shown.images] for shown in (sample, changed))
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            differs = (old != new).any(-1)
            inside = differs[int(top) : int(bottom), int(left) : int(right)].copy()
            differs[int(top) : int(bottom), int(left) : int(right)] &= place != picture
            assert not differs.any() and (inside.any() or place != picture)
        assert isinstance(sample.images[0], Image.Image)


def test_a_line_of_a_file_is_no_trail() -> None:
    assert not is_trail(Sample((), "What?", (), "3", "a", {"file": "x.jsonl", "line": 1}))


def line(number: int, answer: str, picture: str) -> Sample:
    return Sample((picture,), f"Question {number}", (), answer, str(number))


def test_donors_of_a_file_share_the_picture_where_they_can() -> None:
    samples = [
        line(0, "1", "a.png"),
        line(1, "2", "a.png"),
        line(2, "3", "b.png"),
        line(3, "1", "c.png"),
        line(4, "9", "d.png"),
    ]
    told = {number: Told(sample.answer, True, 2, [state(number)] * 2) for number, sample in enumerate(samples)}
    told[4] = Told("9", True, 1, [state(4)])
    found = _of_the_set(samples, told, seed=0)
    assert set(found) == {0, 1, 2, 3}, "nobody else takes one step"
    assert [found[number].same_picture for number in range(4)] == [True, True, False, False]
    assert found[0].answer == "2" and found[3].answer in ("2", "3")


def test_an_effect_counts_what_changed_and_who_followed() -> None:
    plain = {0: Told("1", True, 2), 1: Told("2", True, 2), 2: Told("3", False, 2), 3: Told("4", True, 0)}
    told = {0: Told("7", False, 2), 1: Told("2", True, 2), 2: Told("8", True, 2)}
    donors = {0: Donor([], "7", True), 1: Donor([], "2", True), 2: Donor([], "5", True)}
    found = effect(plain, told, donors)
    assert found["changed"]["value"] == pytest.approx(2 / 3) and found["right"]["value"] == pytest.approx(2 / 3)
    assert found["followed"]["value"] == pytest.approx(1 / 3), "an answer that was the donor's before follows nobody"
    assert found["lost"]["difference"] == 0 and found["lost"]["only_first"] == found["lost"]["only_second"] == 1
    assert accuracy_with(plain, told) == 3 / 4 and effect(plain, told)["followed"] is None


def evidence(
    count: int, zero: float, donor: float, followed: float, control: float = 0.1, same: bool = True, latent: float = 1.0
) -> Evidence:
    """Shares of right answers, in a fixed order: worse ones are wrong where better ones are."""

    def row(share: float) -> Sequence[bool]:
        return [place < round(share * count) for place in range(count)]

    removed = {"zero": row(zero), "mean": row(zero), "noise": row(zero), "donor": row(donor)}
    return Evidence(count, row(latent), removed, row(followed), row(control), same)


@pytest.mark.parametrize(
    ("given", "verdict", "decided", "sentence"),
    [
        (evidence(200, 0.1, 0.0, 0.97), "used", True, CARRY),
        (evidence(200, 0.5, 0.7, 0.3), "used", True, IN_PART),
        (evidence(200, 1.0, 1.0, 0.0, 0.0), "unused", True, UNUSED),
        (evidence(200, 0.0, 0.0, 0.9, 0.1, latent=0.0), "used", True, CARRY),  # wrong, but led by its latents
        (evidence(200, 0.1, 0.1, 0.0, 0.0, latent=0.1), "unused", True, UNUSED),  # at chance either way
        (evidence(20, 1.0, 1.0, 0.0, 0.0), "unused", False, "too few"),
        (evidence(8, 0.9, 0.9, 0.25, 0.0), "used", False, "too few"),
        (evidence(400, 0.3, 0.3, 0.01, 0.01), "unused", False, "not what they say"),
        (evidence(200, 0.3, 0.3, 0.0, 0.0, same=False), "used", True, CARRY),
        (evidence(200, 1.0, 1.0, 0.0, 0.0, same=False), "unused", True, UNUSED),
        (evidence(400, 0.1, 0.1, 0.4, 0.0, latent=0.1), "unused", True, UNGAINFUL),
        (evidence(0, 1.0, 1.0, 0.0), "unused", True, UNUSED),
    ],
)
def test_the_verdict(given: Evidence, verdict: str, decided: bool, sentence: str) -> None:
    found = judge(given)
    assert (found.verdict, found.decided) == (verdict, decided), found
    assert sentence in found.sentence
    assert (found.more_samples is None) == ("too few" not in found.sentence)


def test_noise_that_hurts_does_not_make_a_model_a_user() -> None:
    """Latents that nobody reads may still disturb when they look like nothing that was ever seen."""
    given = evidence(200, 1.0, 1.0, 0.0, 0.0)
    found = judge(replace(given, removed={**given.removed, "zero": [False] * 200, "noise": [False] * 200}))
    assert found.verdict == "unused" and found.decided and found.sentence == UNUSED


def test_a_model_whose_latents_only_say_where_to_look_is_told_so() -> None:
    """Fine replay: the windows that another trail looks at lead to its answer, with its vectors or without."""
    given = evidence(200, 0.9, 0.0, 0.97)
    by_looks = {share: [place < share for place in range(200)] for share in (194, 190, 150, 40, 0)}
    sentences = {share: judge(replace(given, by_looks=row)).sentence for share, row in by_looks.items()}
    assert sentences == {194: BY_LOOKS, 190: BY_LOOKS, 150: CARRY, 40: CARRY, 0: CARRY} and BY_LOOKS.startswith(CARRY)
    told = judge(replace(given, by_looks=by_looks[190])).why
    assert "95.0% with the visual tokens that the donor replays alone" in told
    assert judge(given).sentence == CARRY, "nothing is replayed"


def test_the_looks_of_a_donor_leave_the_latents() -> None:
    given, change = state(9), interventions.looks_of(STATES)
    assert change(1, 2, given).hidden is given.hidden and change(1, 2, given).saliency is STATES[1][1].saliency
    assert change(1, 2, state(9, visual=7)).saliency.shape == (7,)  # pyright: ignore[reportOptionalMemberAccess]


def test_parts_by_name() -> None:
    assert parse_parts(["sign,frozen"]) == (*ALWAYS, "frozen", "sign")
    assert parse_parts(["words", "patched"]) == (*ALWAYS, "patched", "words")
    assert set(parse_parts(list(PARTS))) == set(PARTS)
    for wrong in (["zeros"], [","], [""], ["latent,cot"]):
        with pytest.raises(UserError, match="give any of zero"):
            parse_parts(wrong)
