"""Steps of fixed shape (lrkit/model/recorded.py) against plain ones. Without a GPU their work is run as it is, which is
all of it but the recording; tests/gpu records it."""

from dataclasses import replace

import pytest
import torch

from lrkit.contract.generated import Generated
from lrkit.model.generate import GenerationLimits, generate
from lrkit.model.keys import GrowingKeys, StaticKeys
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.recorded import KEPT, StepRecorder, sizes_of
from lrkit.model.state import Sequences
from tests.lab import PROMPTS, rich_reasoner, settings, teach_halting
from tests.tiny import EOS, Batch, batch

LIMITS = GenerationLimits(eos_id=EOS, max_new_tokens=6)
VARIANTS = {
    "replay": {"replay": {"num_tokens": 3}},
    "no replay": {"replay": {"num_tokens": 0}},
    "more replay than tokens": {"replay": {"num_tokens": 500, "weighting": "softmax"}},
    "one mixed token": {"replay": {"num_tokens": 5, "formation": "soft_mix", "positions": "shared"}},
    "routing": {"replay": {"num_tokens": 3}, "routing": {"depth": 2, "alpha": 4, "layers": "all"}},
    "routing with a threshold": {
        "replay": {"num_tokens": 4},
        "routing": {"depth": 3, "alpha": 3, "threshold": 0.5, "gate": "softmax"},
    },
    "pruning": {"replay": {"num_tokens": 3}, "prune": {"after_layer": 1, "keep": 0.3}},
    "pruning and routing": {
        "prune": {"after_layer": 0, "keep": 0.2},
        "routing": {"depth": 2, "alpha": 4, "layers": "all"},
    },
    "routing, rearranged": {"routing": {"depth": 1, "alpha": 5, "positions": "rearrange"}},
}


def taught(variant: str, **think: object) -> LatentReasoner:
    reasoner = rich_reasoner(settings(think={"max_latent_steps": 4, **think}, **VARIANTS[variant]))
    teach_halting(reasoner, PROMPTS, [2, 0, 3, 1])
    return reasoner


def same(got: list[Generated], want: list[Generated]) -> None:
    for one, other in zip(got, want, strict=True):
        weights = [[[token.weight for token in step] for step in found.replayed] for found in (one, other)]
        for mine, theirs in zip(*weights, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)
        bare = [
            replace(found, timings={}, step_seconds={}, replayed=[[t.index for t in step] for step in found.replayed])  # pyright: ignore
            for found in (one, other)
        ]
        assert bare[0] == bare[1]


@pytest.mark.parametrize("mode", ["latent", "cot"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_and_reports_are_those_of_plain_steps(variant: str, mode: str) -> None:
    reasoner = taught(variant)
    recorder = StepRecorder(reasoner)
    for prompts in (batch(PROMPTS), batch(PROMPTS, "left", extra_pad=2), *(batch([one]) for one in PROMPTS)):
        want = generate(reasoner, prompts, mode, LIMITS)  # pyright: ignore
        same(generate(reasoner, prompts, mode, LIMITS, recorder=recorder), want)  # pyright: ignore


def tensors_of(state: Sequences) -> dict[object, torch.Tensor]:
    return {k: v for k, v in vars(state).items() if isinstance(v, torch.Tensor)} | dict(state.refinement.num_routed)


@pytest.mark.parametrize("most", [0, 2, 4])
def test_a_fixed_number_of_steps(most: int) -> None:
    reasoner = taught("routing")
    limits = replace(LIMITS, max_latent_steps=most, halting="fixed")
    want = generate(reasoner, batch(PROMPTS), "latent", limits)
    same(generate(reasoner, batch(PROMPTS), "latent", limits, recorder=StepRecorder(reasoner)), want)
    assert {made.latent_steps for made in want} == {most}


def test_a_recording_serves_questions_of_like_length_and_forgets_the_last_one() -> None:
    """The first answer, longer, must leave nothing that the second could see."""
    reasoner = taught("routing with a threshold")
    recorder = StepRecorder(reasoner)
    for one in (PROMPTS[1], PROMPTS[0], PROMPTS[3], PROMPTS[1]):
        want = generate(reasoner, batch([one]), "latent", LIMITS)
        same(generate(reasoner, batch([one]), "latent", LIMITS, recorder=recorder), want)
    # The smallest picture gives as many slots as it has tokens; the others have enough for all.
    assert len(recorder._recorded) == 1  # pyright: ignore


def test_only_the_last_few_shapes_are_kept() -> None:
    reasoner = taught("replay")
    recorder = StepRecorder(reasoner)
    shapes: list[Batch] = [batch(PROMPTS[:count]) for count in (1, 2, 3, 4)] + [batch(PROMPTS * 2)]
    for prompts in [*shapes, shapes[0]]:
        want = generate(reasoner, prompts, "latent", LIMITS)
        same(generate(reasoner, prompts, "latent", LIMITS, recorder=recorder), want)
        assert len(recorder._recorded) <= KEPT  # pyright: ignore
    assert [sizes.batch for sizes in recorder._recorded] == [3, 4, 8, 1]  # pyright: ignore


def test_nothing_of_a_recorded_step_moves_or_waits() -> None:
    """What a CUDA graph needs: the same tensors before and after a step, though their values change.

    The count of latent steps once was a new tensor: at the size of 7B its recording read memory given back.
    """
    reasoner = taught("routing, rearranged")
    with torch.inference_mode():
        state = reasoner.prefill(batch(PROMPTS))
        recorder = StepRecorder(reasoner)
        with recorder.steps(state, 4, 6) as steps:
            kept = steps._state  # pyright: ignore
            before = tensors_of(kept)
            values = {name: tensor.clone() for name, tensor in before.items()}
            steps.think(torch.ones(4, dtype=torch.bool))
            after = tensors_of(kept)
    assert len(after) == len(before) > 5
    assert all(after[name] is before[name] for name in before)
    assert not any(torch.equal(after[name], values[name]) for name in before)


def test_room_for_the_longest_answer() -> None:
    reasoner = taught("routing")
    with torch.inference_mode():
        state = reasoner.prefill(batch([PROMPTS[0]]))
        found = sizes_of(reasoner, state, latent_steps=4, spoken=1000)
    assert isinstance(state.keys, GrowingKeys) and state.keys.valid_BN is not None
    prompt_columns = state.keys.valid_BN.shape[1]
    assert found.columns >= prompt_columns + 4 * (3 + 1) + 1000
    assert dict(found.refined)[0] >= 4 + 4 * 4
    assert found.slots == 3


def test_static_keys_mask_what_was_never_written() -> None:
    keys = StaticKeys([0], torch.zeros(1, 1, 0, 2), capacity=5)
    first = keys.extend(torch.tensor([[True, False]]))
    keys.cache.update(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 0)
    assert first[0, 0].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]  # padding sees itself
    second = keys.extend(torch.tensor([[True]]))
    assert second[0, 0].int().tolist() == [[1, 0, 1, 0, 0]]
    filled, _ = keys.cache.update(torch.full((1, 1, 1, 2), 7.0), torch.ones(1, 1, 1, 2), 0)
    assert filled[0, 0, :, 0].tolist() == [1, 1, 7, 0, 0]
    keys.load(None)
    assert keys.extend(torch.tensor([[True]]))[0, 0].int().tolist() == [[1, 0, 0, 0, 0]]


def test_an_answer_that_overflowed_leaves_no_trace() -> None:
    """A hidden key counts for nothing, unless it is no number: nothing times that is no number either."""
    reasoner = taught("routing")
    recorder = StepRecorder(reasoner)
    want = generate(reasoner, batch([PROMPTS[0]]), "latent", LIMITS)
    generate(reasoner, batch([PROMPTS[0]]), "latent", LIMITS, recorder=recorder)
    (kept,) = recorder._recorded.values()  # pyright: ignore
    with torch.inference_mode():
        for keys in (kept._state.keys, *kept._state.refinement.keys.values()):  # pyright: ignore
            for buffer in (buffer for pair in keys.cache.buffers.values() for buffer in pair):
                buffer.fill_(float("nan"))
    same(generate(reasoner, batch([PROMPTS[0]]), "latent", LIMITS, recorder=recorder), want)


def test_what_runs_before_it_is_recorded_has_room_too() -> None:
    """An answer without latents whose prompt fills its columns once left none for the latent step that is recorded."""
    reasoner = taught("routing")
    with torch.inference_mode():
        state = reasoner.prefill(batch([PROMPTS[0]]))
        prompt_columns = state.keys.valid_BN.shape[1]  # pyright: ignore
        found = sizes_of(reasoner, state, latent_steps=0, spoken=256 - prompt_columns)
    assert found.columns >= 256 + 3 + 1
    assert all(columns >= 4 + 4 for _, columns in found.refined)
