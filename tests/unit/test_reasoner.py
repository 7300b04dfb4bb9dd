"""What must hold of the whole reasoner (method sections 1 to 6); numbers against a recompute are in tests/parity."""

import pytest
import torch
from torch import Tensor

from lrkit.errors import DataError
from lrkit.model.decoder import run_chunk
from lrkit.model.objective import ReasonerLoss
from lrkit.model.reasoner import LatentReasoner
from tests.lab import Steps, rich_reasoner, run_steps, settings, teach_halting
from tests.tiny import EOS, IMAGE, LATENT, VOCABULARY, Batch, Prompt, batch, prompt, tiny_reasoner

FULL = {
    "replay": {"num_tokens": 3, "weighting": "softmax"},
    "routing": {"depth": 2, "alpha": 4},
    "distill": {"weight": 0.5, "window": 2},
}
PROMPTS = [
    prompt(1, ((1, 6, 8),), 6),
    prompt(2, ((1, 4, 6), (1, 4, 4)), 11),
    prompt(3, (), 4),
    prompt(4, ((1, 4, 4),), 8),
]
LATENTS = [4, 2, 1, 0]
SPEECH = [[20, 21, EOS], [22, EOS], [23, 24, 25, EOS], [26, 27, EOS]]


def made(rows: list[int], side: str = "right", extra_pad: int = 0) -> Batch:
    chosen = batch([PROMPTS[i] for i in rows], side, extra_pad, [LATENTS[i] for i in rows], [SPEECH[i] for i in rows])
    return chosen


def speech(steps: Steps, chosen: Batch) -> list[Tensor]:
    """Logits of each sample's real spoken tokens."""
    return [steps.speech_BSW[i, chosen.speech_mask[i]] for i in range(len(chosen.speech_mask))]


def losses(loss: ReasonerLoss) -> Tensor:
    return torch.stack([loss.total, loss.speech, loss.distill])


# ---- batches -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_batch_of_unlike_samples_equals_each_alone() -> None:
    """Other image sizes, numbers of images, prompt lengths and latent counts, text only among them."""
    reasoner = rich_reasoner(settings(**FULL))
    together = speech(run_steps(reasoner, made([0, 1, 2, 3])), made([0, 1, 2, 3]))
    for row in range(4):
        alone = speech(run_steps(reasoner, made([row])), made([row]))[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_loss_of_a_batch_is_made_of_the_losses_of_its_samples() -> None:
    reasoner = rich_reasoner(settings(**FULL))
    whole, each = reasoner(made([0, 1, 2, 3])), [reasoner(made([row])) for row in range(4)]
    count = [len(SPEECH[row]) + LATENTS[row] for row in range(4)]
    expected = sum(loss.speech * n for loss, n in zip(each, count, strict=True)) / sum(count)
    torch.testing.assert_close(whole.speech, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(whole.distill, (each[0].distill + each[1].distill) / 2, rtol=1e-5, atol=0)
    assert int(whole.num_tokens) == sum(count) == sum(int(loss.num_tokens) for loss in each)
    assert int(whole.right_tokens) == sum(int(loss.right_tokens) for loss in each)


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("side", "extra_pad"), [("left", 0), ("right", 4), ("left", 7)])
def test_padding_on_either_side_changes_neither_loss_nor_gradient(side: str, extra_pad: int, gate: str) -> None:
    reasoner = rich_reasoner(settings(**{**FULL, "routing": {"depth": 2, "alpha": 6, "gate": gate, "threshold": 0.1}}))
    results: list[tuple[Tensor, Tensor]] = []
    for chosen in (made([0, 1, 2]), made([0, 1, 2], side, extra_pad)):
        reasoner.zero_grad()
        loss = reasoner(chosen)
        loss.total.backward()
        grads = [p.grad.flatten() for p in reasoner.parameters() if p.grad is not None]
        results.append((losses(loss).detach(), torch.cat(grads)))
    (loss_a, grad_a), (loss_b, grad_b) = results
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_a, grad_b, rtol=0, atol=1e-5 * float(grad_a.abs().max()))


@torch.no_grad()
def test_text_only_samples_and_batches_work() -> None:
    reasoner = rich_reasoner(settings(**FULL))
    loss = reasoner(made([2]))
    assert bool(loss.total.isfinite()) and float(loss.distill) == 0.0
    assert run_steps(reasoner, made([2])).replays == [None]


# ---- causality -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_later_speech_never_changes_an_earlier_logit() -> None:
    """The release's routing sees the whole sequence, the answer included."""
    reasoner = rich_reasoner(settings(**FULL))
    first, second = made([0, 1]), made([0, 1])
    second.speech_ids[:, 1] = 50
    a, b = run_steps(reasoner, first), run_steps(reasoner, second)
    torch.testing.assert_close(a.speech_BSW[:, :2], b.speech_BSW[:, :2], rtol=0, atol=1e-6)
    assert float((a.speech_BSW[0, 2] - b.speech_BSW[0, 2]).abs().max()) > 1e-2


@torch.no_grad()
def test_more_latent_steps_never_change_the_earlier_ones() -> None:
    reasoner = rich_reasoner(settings(**FULL))
    short, long = made([0]), made([0])
    short.num_latents[:] = 2
    a, b = run_steps(reasoner, short), run_steps(reasoner, long)
    for step in range(2):
        assert torch.equal(a.sources[step], b.sources[step])
    for x, y in zip(a.routed, b.routed, strict=False):
        assert torch.equal(x.index_BA, y.index_BA)


@torch.no_grad()
def test_a_prompt_token_never_changes_the_logits_before_it() -> None:
    """Within a chunk too. All tokens are routed, so that the choice of tokens stays the same."""
    reasoner = rich_reasoner(settings(**{**FULL, "routing": {"depth": 2, "alpha": 500}}))
    text = prompt(8, (), 9)
    changed = Prompt((), (*text.text[:6], 30, *text.text[7:]), None)
    hidden = []
    for one in (text, changed):
        state = reasoner.prefill(batch([one]))
        hidden.append(torch.cat([layer.keys for layer in state.keys.cache.layers], dim=1))
    assert torch.equal(hidden[0][:, :, :6], hidden[1][:, :, :6])
    assert not torch.equal(hidden[0][:, :, 6:], hidden[1][:, :, 6:])


# ---- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formation", ["tokens", "soft_mix"])
@pytest.mark.parametrize("weighting", ["softmax", "relative", "none"])
def test_more_latent_steps_than_patches_give_no_nan_and_no_zero_tokens(
    weighting: str, formation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four patches, three per step: the second step replays one, the third and fourth none."""
    reasoner = rich_reasoner(
        settings(**{**FULL, "replay": {"num_tokens": 3, "weighting": weighting, "formation": formation}})
    )
    norms: list[Tensor] = []

    def watched(backbone, routing, state, embeds, valid, positions, row=None):
        norms.append(embeds.detach().norm(dim=-1)[valid])
        return run_chunk(backbone, routing, state, embeds, valid, positions, row)

    monkeypatch.setattr("lrkit.model.reasoner.run_chunk", watched)
    chosen = batch([PROMPTS[3], PROMPTS[0]], num_latents=[4, 4], speech=[SPEECH[0], SPEECH[1]])
    loss = reasoner(chosen)
    loss.total.backward()
    assert len(norms) == 5 and all(bool((norm > 1e-6).all()) for norm in norms)
    per_step = 1 if formation == "soft_mix" else 3
    assert [len(norm) for norm in norms[:4]] == [2 * (per_step + 1), per_step + 3, per_step + 2, per_step + 2] or (
        formation == "soft_mix"
    )
    assert bool(torch.stack([loss.total, loss.speech, loss.distill]).isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in reasoner.parameters() if p.grad is not None)


@torch.no_grad()
def test_a_replayed_token_never_comes_back() -> None:
    reasoner = rich_reasoner(settings(**FULL))
    steps = run_steps(reasoner, made([0, 1]))
    for row in range(2):
        seen = [i for r in steps.replays[: LATENTS[row]] if r is not None for i in r.index_BK[row].tolist() if i >= 0]
        assert len(seen) == len(set(seen)) == min(3 * LATENTS[row], 12)


@torch.no_grad()
def test_positions_go_on_only_over_tokens_that_are_there() -> None:
    """A chunk with one replayed token of three takes two positions."""
    reasoner = rich_reasoner(settings(**FULL))
    chosen = made([3, 0])
    state = reasoner.prefill(chosen)
    start = state.next_position_B.clone()
    assert start.tolist() == [2 + 1 + 1 + 8, 4 + 1 + 1 + 6]
    for expected in ([4, 4], [6, 8], [7, 12]):
        reasoner.think(state, torch.tensor([True, True]))
        assert (state.next_position_B - start).tolist() == expected
    reasoner.think(state, torch.tensor([False, True]))
    assert (state.next_position_B - start).tolist() == [7, 16]


@torch.no_grad()
def test_speech_of_one_token_has_a_loss() -> None:
    """An empty chunk once reached the attention kernel."""
    reasoner = rich_reasoner(settings(**FULL))
    loss = reasoner(batch([PROMPTS[0]], num_latents=[1], speech=[[20]]))
    assert int(loss.num_tokens) == 2 and bool(loss.total.isfinite())


@torch.no_grad()
def test_prompts_of_more_than_3000_tokens_work_and_padding_them_in_changes_nothing() -> None:
    """The release crashes there."""
    reasoner = rich_reasoner(settings(**FULL))
    long = prompt(5, ((1, 4, 6),), 3100)
    both = batch([PROMPTS[3], long], num_latents=[1, 1], speech=[SPEECH[3], SPEECH[1]])
    alone = batch([PROMPTS[3]], num_latents=[1], speech=[SPEECH[3]])
    together = speech(run_steps(reasoner, both), both)
    assert bool(together[1].isfinite().all())
    torch.testing.assert_close(together[0], speech(run_steps(reasoner, alone), alone)[0], rtol=0, atol=2e-5)


def test_image_tokens_without_images_are_refused() -> None:
    reasoner, chosen = rich_reasoner(settings(**FULL)), made([0])
    chosen.pixel_values = None
    with pytest.raises(DataError, match="no image"):
        reasoner.prefill(chosen)
    extra = made([0])
    extra.input_ids[0, -1] = IMAGE
    with pytest.raises(DataError, match="13 image tokens"):
        reasoner.prefill(extra)


# ---- gradient ------------------------------------------------------------------------------------------------------


def named_gradients(reasoner: LatentReasoner) -> dict[str, bool]:
    return {
        name: p.grad is not None and bool(p.grad.any()) for name, p in reasoner.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("weighting", ["softmax", "relative", "none"])
def test_the_answers_loss_alone_reaches_every_latent_and_all_that_is_trained(weighting: str) -> None:
    """In the release the gradient through latents is exactly zero and the router is frozen."""
    reasoner = rich_reasoner(
        settings(
            **{**FULL, "replay": {"num_tokens": 3, "weighting": weighting}},
            think={"latent_scale": "learned"},
        )
    )
    chosen = made([0])
    steps = run_steps(reasoner, chosen)
    assert len(steps.sources) == 4
    for source in steps.sources:
        source.retain_grad()
    torch.nn.functional.cross_entropy(steps.speech_BSW[0, 1:2], chosen.speech_ids[0, 1:2]).backward()
    for step, source in enumerate(steps.sources):
        assert source.grad is not None and bool(source.grad.any()), f"latent {step}"
    got = named_gradients(reasoner)
    untouched = {name for name, reached in got.items() if not reached}
    assert untouched == {"token_sr.map.weight", "token_sr.map.bias"}
    assert {"routers.1.router.weight", "routers.3.step_encoding_RD", "latent.scale"} <= set(got)
    assert sum("lora_" in name for name in got) == 2 * 4 * 7


def test_the_decision_to_think_trains_the_latent_row() -> None:
    reasoner = rich_reasoner(settings(**FULL))
    reasoner(made([0, 3])).total.backward()
    assert named_gradients(reasoner)["latent.head_row_D"]


# ---- halting in the loss -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_latent_logits_are_masked_where_the_model_was_asked_to_speak() -> None:
    reasoner = rich_reasoner(settings(**FULL))
    chosen = made([3])
    teach_halting(reasoner, [PROMPTS[3]], [0], margin=0.5)
    closed = reasoner(chosen).speech
    chosen.may_think = torch.tensor([True])
    opened = reasoner(chosen).speech
    assert float(opened) > float(closed) + 1e-3
    reasoner.latent.head_row_D.mul_(3.0)
    chosen.may_think = torch.tensor([False])
    torch.testing.assert_close(reasoner(chosen).speech, closed)


@torch.no_grad()
def test_fixed_halting_supervises_no_decision() -> None:
    fixed = rich_reasoner(settings(**FULL, think={"halting": "fixed"}))
    assert int(fixed(made([0, 1])).num_tokens) == 5
    assert int(rich_reasoner(settings(**FULL))(made([0, 1])).num_tokens) == 5 + 6


# ---- the backbone as it was ------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [[0], [2], [0, 1]])
def test_fresh_routing_without_replay_equals_the_plain_backbone_bit_for_bit(tied: bool, rows: list[int]) -> None:
    """Keys and values of every layer, the last hidden state and the logits, against transformers' own forward."""
    chosen = settings(replay={"num_tokens": 0}, routing={"depth": 2, "alpha": 4})
    reasoner = tiny_reasoner(chosen, tied=tied, encodings=0.0)
    prompts = batch([PROMPTS[i] for i in rows], side="left")
    state = reasoner.prefill(prompts)
    assert {routed.layer for routed in state.refinement.log} == {1, 3}
    model = reasoner.model
    model.set_attn_implementation("sdpa")
    want = model(
        input_ids=prompts.input_ids,
        attention_mask=prompts.prompt_mask.long(),
        pixel_values=prompts.pixel_values,
        image_grid_thw=prompts.grids,
        mm_token_type_ids=(prompts.input_ids == IMAGE).int(),
        use_cache=True,
        output_hidden_states=True,
        logits_to_keep=1,
    )
    for layer, theirs in zip(state.keys.cache.layers, want.past_key_values.layers, strict=True):
        for row, real in enumerate(prompts.prompt_mask):
            assert torch.equal(layer.keys[row][:, real], theirs.keys[row][:, real])
            assert torch.equal(layer.values[row][:, real], theirs.values[row][:, real])
    assert torch.equal(state.last_hidden_BD, want.hidden_states[-1][:, -1])
    # Of the same slice of memory: the matrix product of a copied slice may round otherwise.
    got = reasoner.logits(want.hidden_states[-1][:, -1:])
    others = [i for i in range(VOCABULARY) if i != LATENT]
    assert torch.equal(got[..., others], want.logits[..., others])
    # The latent column is a product of its own; another kernel may round it otherwise.
    torch.testing.assert_close(got[..., LATENT], want.logits[..., LATENT], rtol=1e-6, atol=1e-6)
