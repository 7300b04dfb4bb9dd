"""Saliency (method section 2): one attention row beside the SDPA kernel, and who may look at whom."""

import torch

from lrkit.model.saliency import register, visible_mask
from tests.lab import rich_reasoner, settings
from tests.tiny import IMAGE, Batch, batch, prompt

REPLAY = settings(replay={"num_tokens": 2})


def eager_saliency(reasoner, made: Batch) -> torch.Tensor:
    """Mean over layers and heads of the last row of transformers' own eager attention maps, at the image's columns."""
    model = reasoner.model
    model.set_attn_implementation("eager")
    kinds = (made.input_ids == IMAGE).int()
    maps = model(
        input_ids=made.input_ids,
        attention_mask=made.prompt_mask.long(),
        pixel_values=made.pixel_values,
        image_grid_thw=made.grids,
        mm_token_type_ids=kinds,
        output_attentions=True,
    ).attentions
    model.set_attn_implementation({"text_config": register(), "vision_config": "sdpa"})
    row = torch.stack(maps).mean((0, 2))[:, -1]
    return row[made.input_ids == IMAGE].view(len(row), -1)


@torch.no_grad()
def test_row_equals_transformers_eager_attention() -> None:
    reasoner = rich_reasoner(REPLAY)
    made = batch([prompt(1), prompt(2)])
    saliency = reasoner.prefill(made).saliency_BV
    torch.testing.assert_close(saliency, eager_saliency(reasoner, made), rtol=0, atol=1e-6)


@torch.no_grad()
def test_row_is_of_the_last_real_token_on_either_side_of_padding() -> None:
    reasoner, one = rich_reasoner(REPLAY), prompt(1)
    alone = reasoner.prefill(batch([one])).saliency_BV
    for side in ("left", "right"):
        padded = reasoner.prefill(batch([one], side, extra_pad=5)).saliency_BV
        torch.testing.assert_close(padded, alone, rtol=0, atol=1e-6)


@torch.no_grad()
def test_padding_visual_slots_score_zero() -> None:
    state = rich_reasoner(REPLAY).prefill(batch([prompt(1), prompt(2, ((1, 4, 4),)), prompt(3, ())]))
    assert state.saliency_BV is not None and state.visual is not None
    assert state.visual.real_BV.sum(1).tolist() == [6, 4, 0]
    assert bool((state.saliency_BV[~state.visual.real_BV] == 0).all())
    assert bool((state.saliency_BV[state.visual.real_BV] > 0).all())


def test_no_attention_of_the_model_is_eager() -> None:
    """The release runs eager attention everywhere to get its maps; here the tower and the layers run SDPA."""
    model = rich_reasoner(REPLAY).model
    assert model.config.text_config._attn_implementation == "lrkit_sdpa"
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_gradient_flows_through_the_row() -> None:
    reasoner = rich_reasoner(REPLAY)
    state = reasoner.prefill(batch([prompt(1)]))
    state.saliency_BV[0, 0].backward()
    grads = {n: p.grad for n, p in reasoner.named_parameters() if "lora_A" in n and "q_proj" in n}
    assert len(grads) == 4 and all(g is not None and bool(g.any()) for g in grads.values())


def test_visible_mask_is_causal_hides_padding_and_leaves_no_row_empty() -> None:
    valid = torch.tensor([[False, True, True, False, True]])
    mask = visible_mask(valid, 3)[0, 0].int().tolist()
    assert mask == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 0, 1]]
    assert bool(visible_mask(torch.zeros(2, 4, dtype=torch.bool), 4).any(-1).all())
