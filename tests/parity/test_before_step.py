"""The hook between latent steps: what it sees, that seeing changes nothing, and that torch and the form step agree on
what a change does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lrkit.contract.carried import BeforeStep, Carried
from lrkit.contract.generated import Generated
from lrkit.contract.settings import ThinkSettings
from lrkit.data.trail import trail_set
from lrkit.errors import UserError
from lrkit.model.carried_state import change
from lrkit.model.latent_token import LatentToken
from lrkit.runtime.engines.common.protocol import AskOptions, Engine
from lrkit.runtime.sdk import Reasoner
from tests.bundles import MAX_NEW_TOKENS, SETTINGS, torch_reasoner
from tests.tiny import batch, prompt, tiny_reasoner

SAMPLES = trail_set("main", "test", 3)
STEPS = 3


def ask(engine: Engine, before_step: BeforeStep | None, **options: object) -> list[Generated]:
    prompts = [engine.processor.encode_prompt(sample.images, sample.question) for sample in SAMPLES]
    given = {"max_new_tokens": MAX_NEW_TOKENS, **options}
    return engine.generate(prompts, AskOptions(before_step=before_step, **given))  # pyright: ignore[reportArgumentType]


def rows_of(
    engine: Engine, change: Callable[[Carried], Carried] = lambda given: given
) -> dict[tuple[int, int], Carried]:
    """(sample, step) -> what the step started from, a row each."""
    seen: dict[tuple[int, int], Carried] = {}

    def note(given: Carried) -> Carried:
        for row, sample in enumerate(given.samples):
            saliency = None if given.saliency is None else given.saliency[row].copy()
            seen[sample, given.step] = Carried(given.step, (sample,), given.hidden[row].copy(), saliency)
        return change(given)

    ask(engine, note)
    return seen


def same(one: Generated, other: Generated) -> bool:
    return (one.token_ids, one.latent_steps, one.replayed) == (other.token_ids, other.latent_steps, other.replayed)


@pytest.mark.parametrize("kind", ["torch", "step"])
def test_looking_changes_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    engine = torch_reasoner().engine if kind == "torch" else step_engine(request)
    plain, looked = ask(engine, None), ask(engine, lambda given: given)
    assert all(same(one, other) for one, other in zip(plain, looked, strict=True))
    assert all(len(one.replayed) == STEPS and one.replayed[0] for one in plain)


def step_engine(request: pytest.FixtureRequest) -> Engine:
    bundle: Path = request.getfixturevalue("step_bundle")
    return Reasoner.load(bundle).engine


def test_torch_and_the_form_step_carry_the_same(step_bundle: Path) -> None:
    plain, steps = rows_of(torch_reasoner().engine), rows_of(Reasoner.load(step_bundle).engine)
    assert set(plain) == set(steps) == {(sample, step) for sample in range(3) for step in range(1, STEPS + 1)}
    for key, row in plain.items():
        other = steps[key]
        assert row.saliency is not None and other.saliency is not None
        assert np.allclose(row.hidden, other.hidden, atol=1e-3), key
        assert row.saliency.shape == other.saliency.shape and np.allclose(row.saliency, other.saliency, atol=1e-5), key


def swapped(given: Carried) -> Carried:
    """From the second step on: the hidden state turned around, and the saliency in reverse."""
    if given.step < 2 or given.saliency is None:
        return given
    return Carried(given.step, given.samples, given.hidden[:, ::-1], given.saliency[:, ::-1])


def test_torch_and_the_form_step_take_the_same_change(step_bundle: Path) -> None:
    engines = torch_reasoner().engine, Reasoner.load(step_bundle).engine
    found = [ask(engine, swapped) for engine in engines]
    assert [one.replayed for one in found[0]] != [one.replayed for one in ask(engines[0], None)]
    for one, other in zip(*found, strict=True):
        assert [[t.index for t in step] for step in one.replayed] == [
            [t.index for t in step] for step in other.replayed
        ]
        assert one.token_ids == other.token_ids
    after = [rows_of(engine, swapped) for engine in engines]
    assert all(np.allclose(row.hidden, after[1][key].hidden, atol=1e-3) for key, row in after[0].items())
    before = rows_of(engines[0])
    assert np.array_equal(before[0, 2].hidden, after[0][0, 2].hidden), "the change comes after the second look"
    assert not np.allclose(before[0, 3].hidden, after[0][0, 3].hidden, atol=1e-2)


def test_a_sample_that_stopped_thinking_is_left_alone() -> None:
    reasoner = tiny_reasoner(SETTINGS["latent"])
    state = reasoner.read(batch([prompt(1), prompt(2)]))
    before, seen = state.last_hidden_BD, list[Carried]()

    def spoil(given: Carried) -> Carried:
        seen.append(given)
        assert given.saliency is not None
        return Carried(given.step, given.samples, given.hidden * 0, given.saliency + 1)

    saliency = state.saliency_BV
    change(state, spoil, 1, torch.tensor([False, True]))
    assert [(one.step, one.samples, len(one.hidden)) for one in seen] == [(1, (1,), 1)]
    assert saliency is not None and state.saliency_BV is not None
    assert torch.equal(state.last_hidden_BD[0], before[0]) and torch.equal(state.saliency_BV[0], saliency[0])
    assert not state.last_hidden_BD[1].any() and torch.allclose(state.saliency_BV[1], saliency[1] + 1)
    assert before[1].any(), "what the caller held is not written over"


def test_a_program_of_one_graph_refuses_and_names_the_form(bundle: Path) -> None:
    with pytest.raises(UserError, match="form: step"):
        ask(Reasoner.load(bundle).engine, lambda given: given)


@pytest.mark.parametrize("fault", ["shape", "none"])
def test_a_hook_that_gives_something_else_is_one_sentence(fault: str) -> None:
    def wrong(given: Carried) -> Carried:
        if fault == "shape":
            return Carried(given.step, given.samples, given.hidden[:, 1:], given.saliency)
        return Carried(given.step, given.samples, given.hidden, None)

    with pytest.raises(UserError, match="before_step gave"):
        ask(torch_reasoner().engine, wrong)


def test_a_zero_state_gives_a_zero_latent() -> None:
    """Divided by its length of zero it would not be a number, where embeddings are long."""
    latent = LatentToken(1, torch.full((4, 8), 50.0), None, ThinkSettings(latent_scale="embedding"))
    assert torch.equal(latent.as_input(torch.zeros(2, 8)), torch.zeros(2, 8))
