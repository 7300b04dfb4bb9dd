"""Features that visual tokens add behind deeper layers: at their places in the prompt, and where they are replayed.

The cached, batched reasoner against the full recompute of reference.py, as in test_reasoner_reference.py.
"""

import pytest
import torch

from lrkit.model.build import extra_state
from lrkit.model.generate import GenerationLimits, generate
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.recorded import StepRecorder
from tests.deep import DEEP, deepened
from tests.lab import pieces, rich_reasoner, run_steps, teach_halting
from tests.parity.reference import Reference
from tests.parity.reference_losses import distill_loss, speech_loss
from tests.parity.test_reasoner_reference import (
    LATENTS,
    PROMPTS,
    SPEECH,
    case,
    close,
    compare_routing,
    compare_thoughts,
    training_batch,
)
from tests.tiny import EOS, LATENT, batch

CASES = [
    "paper", "no_replay", "replay_exhausts", "relative", "soft_mix_relative", "no_routing", "threshold_softmax",
    "rearranged_threshold", "layers_chosen", "distilled", "distilled_mlp_soft_mix", "pruned", "pruned_late",
]  # fmt: skip


def deep_pair(name: str, **build: object) -> tuple[LatentReasoner, Reference]:
    reasoner = rich_reasoner(case(name), **build)  # pyright: ignore
    matrices = deepened(reasoner)
    return reasoner, Reference(reasoner.model, extra_state(reasoner), reasoner.settings, LATENT, matrices)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_cached_batched_run_equals_full_recompute(name: str) -> None:
    reasoner, reference = deep_pair(name)
    made = training_batch()
    steps, loss = run_steps(reasoner, made), reasoner(made)
    total, count, distilled = 0.0, 0.0, []
    for row, one in enumerate(PROMPTS):
        told = reference.tell(*pieces(one), LATENTS[row], SPEECH[row])
        close(steps.speech_BSW[row, : len(SPEECH[row])], told.speech_logits_SW, f"sample {row}, speech")
        compare_thoughts(steps, told, row)
        compare_routing(steps, told, row)
        weights = made.speech_weights[row, : len(SPEECH[row])].tolist()
        summed, weight = speech_loss(reference, told, SPEECH[row], weights, may_think=True)
        total, count = total + summed, count + weight
        if reasoner.settings.distill.weight and (own := distill_loss(reference, told, *pieces(one)[1:])) is not None:
            distilled.append(own)
    close(loss.speech, total / count, "speech loss")
    if distilled:
        close(loss.distill, sum(distilled) / len(distilled), "distillation loss")


@pytest.mark.parametrize("name", ["paper", "soft_mix_relative"])
@torch.no_grad()
def test_answers_equal_full_recompute_plain_and_recorded(name: str) -> None:
    reasoner, reference = deep_pair(name, seed=5)
    teach_halting(reasoner, PROMPTS, [2, 0, 3])
    limits, recorder = GenerationLimits(eos_id=EOS, max_new_tokens=6), StepRecorder(reasoner)
    plain = generate(reasoner, batch(PROMPTS), "latent", limits)
    recorded = generate(reasoner, batch(PROMPTS), "latent", limits, recorder=recorder)
    for got, again, one in zip(plain, recorded, PROMPTS, strict=True):
        spoken, latents = reference.answer(*pieces(one), 6, EOS)
        assert (got.token_ids, got.latent_steps) == (again.token_ids, again.latent_steps) == (spoken, latents)


@torch.no_grad()
def test_replayed_tokens_bring_their_features() -> None:
    """Without them the second latent would be another; the first is made of the prompt alone."""
    reasoner, _ = deep_pair("paper")
    steps = run_steps(reasoner, training_batch())
    assert all(found is not None and found.tokens_BRE.shape[-1] == 32 * (1 + len(DEEP)) for found in steps.replays)
    prefill = reasoner.prefill

    def forgetting(prompts):  # the prompt has them, what is replayed has not
        state = prefill(prompts)
        assert state.visual is not None
        state.visual.rows_BVE[..., 32:] = 0
        return state

    reasoner.prefill = forgetting
    without = run_steps(reasoner, training_batch())
    assert torch.equal(steps.sources[0], without.sources[0])
    assert float((steps.sources[1][0] - without.sources[1][0]).abs().max()) > 1e-2
    assert torch.equal(steps.sources[1][2], without.sources[1][2]), "a sample without pictures has none"


def test_the_loss_reaches_the_saliency_through_them() -> None:
    """Only what replayed tokens add behind the layers is fed, so all of the gradient comes through it."""
    reasoner, _ = deep_pair("no_routing")
    made = training_batch()
    state = reasoner.prefill(made)
    assert state.visual is not None and state.saliency_BV is not None
    state.visual.rows_BVE = torch.cat(
        [torch.zeros_like(state.visual.rows_BVE[..., :32]), state.visual.rows_BVE[..., 32:]], dim=-1
    )
    saliency = state.saliency_BV = state.saliency_BV.detach().requires_grad_()
    reasoner.think(state, torch.tensor([True, True, True]))
    state.last_hidden_BD.sum().backward()
    assert saliency.grad is not None and float(saliency.grad[:2].abs().max()) > 0


@pytest.mark.parametrize(("side", "extra_pad"), [("left", 0), ("right", 3), ("left", 5)])
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(side: str, extra_pad: int) -> None:
    reasoner, _ = deep_pair("distilled")
    samples = zip(PROMPTS, LATENTS, SPEECH, strict=True)
    alone = [run_steps(reasoner, batch([one], "right", 0, [count], [said])) for one, count, said in samples]
    together = run_steps(reasoner, batch(PROMPTS, side, extra_pad, LATENTS, SPEECH))
    for row, said in enumerate(SPEECH):
        close(together.speech_BSW[row, : len(said)], alone[row].speech_BSW[0], f"sample {row}")
