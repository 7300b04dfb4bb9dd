"""What can be done to latents: each intervention says what a latent step is to start from. Torch-free.

Place in the pipeline: the states of the untouched answers -> an intervention -> `Questions.ask`. All are functions of a
question's number, the step and its state, so that one means the same on every engine, in batches of any size.

Legend: D width, V visual tokens of a prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lrkit.probe.asking import Change, State, Told

States = Mapping[int, Sequence[State]]
"""Number of a question -> what each of its latent steps started from."""
_NOISE, _ORDER, _PLACES = range(3)
"""Each intervention that draws has random numbers of its own."""


def zero(number: int, step: int, state: State) -> State:
    """Nothing in place of the latent. Where it is replayed stays."""
    return replace(state, hidden=np.zeros_like(state.hidden))


def mean_of(told: Mapping[int, Told]) -> Change:
    """The mean over the questions of the run at that step in place of each."""
    steps = max((len(one.states) for one in told.values()), default=0)
    means = [
        np.mean([one.states[step].hidden for one in told.values() if len(one.states) > step], axis=0, dtype=np.float64)
        for step in range(steps)
    ]
    rows = [mean.astype(np.float32) for mean in means]

    def change(number: int, step: int, state: State) -> State:
        return replace(state, hidden=rows[step - 1])

    return change


def noise(seed: int) -> Change:
    """A random direction with the norm of the state."""

    def change(number: int, step: int, state: State) -> State:
        drawn = _rng(seed, _NOISE, number, step).standard_normal(len(state.hidden))
        length = np.linalg.norm(state.hidden) / np.linalg.norm(drawn)
        return replace(state, hidden=(drawn * length).astype(np.float32))

    return change


def donated(states: States, only: int | None = None) -> Change:
    """The donor's latents, and where they are replayed from, at all steps or at one."""

    def change(number: int, step: int, state: State) -> State:
        if only not in (None, step):
            return state
        given = states[number][step - 1]
        # Of another picture the places say nothing.
        comparable = state.saliency is not None and given.saliency is not None
        fits = comparable and state.saliency.shape == given.saliency.shape  # pyright: ignore[reportOptionalMemberAccess]
        return replace(state, hidden=given.hidden, saliency=given.saliency if fits else state.saliency)

    return change


def looks_of(states: States) -> Change:
    """The latents as they are, and the visual tokens that the donor replays, with its weights."""
    both = donated(states)

    def change(number: int, step: int, state: State) -> State:
        return replace(state, saliency=both(number, step, state).saliency)

    return change


def shuffled(states: States, seed: int) -> Change:
    """The question's own latents in another order."""
    orders = {number: _order(len(own), _rng(seed, _ORDER, number, 0)) for number, own in states.items()}

    def change(number: int, step: int, state: State) -> State:
        return states[number][orders[number][step - 1]]

    return change


def frozen(states: States, at: int) -> Change:
    """From step `at` on always the latent of step `at`."""

    def change(number: int, step: int, state: State) -> State:
        return states[number][at - 1] if step >= at else state

    return change


def random_places(seed: int) -> Change:
    """The saliency row in random order: as many visual tokens are replayed, with like weights, from other places."""

    def change(number: int, step: int, state: State) -> State:
        if state.saliency is None:
            return state
        return replace(state, saliency=_rng(seed, _PLACES, number, step).permutation(state.saliency))

    return change


def _order(count: int, rng: np.random.Generator) -> list[int]:
    """A random order of 0..count-1 that moves something, where there are two."""
    order = list(range(count))
    while count > 1 and order == sorted(order):
        order = rng.permutation(count).tolist()
    return order


def _rng(seed: int, kind: int, number: int, step: int) -> np.random.Generator:
    """The same numbers whatever was asked before, and in whatever batches."""
    return np.random.default_rng([seed, kind, number, step])
