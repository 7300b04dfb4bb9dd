"""M-RoPE positions against transformers' `get_rope_index`, over prompts with zero to three images of many shapes."""

import random

import torch
from transformers import Qwen2VLForConditionalGeneration

from lrkit.model.decoder import prompt_positions
from tests.tiny import IMAGE, batch, prompt, tiny_backbone


def rope_index(
    model: Qwen2VLForConditionalGeneration, ids: torch.Tensor, mask: torch.Tensor, grids: torch.Tensor | None
):
    kinds = (ids == IMAGE).int()
    return model.model.get_rope_index(ids, kinds, image_grid_thw=grids, attention_mask=mask.long())


def test_positions_equal_get_rope_index_on_forty_prompts() -> None:
    backbone, chance, seen = tiny_backbone(), random.Random(0), set()
    for round_ in range(10):
        prompts = []
        for sample in range(4):
            number = chance.randint(0, 3)
            grids = tuple((1, 2 * chance.randint(1, 6), 2 * chance.randint(1, 6)) for _ in range(number))
            prompts.append(prompt(100 * round_ + sample, grids, length=chance.randint(1, 12)))
            seen.add(number)
        made = batch(prompts, side=chance.choice(["left", "right"]), extra_pad=chance.randint(0, 3))
        want, _ = rope_index(backbone.model, made.input_ids, made.prompt_mask, made.grids)
        got, following = prompt_positions(backbone, made)
        real = made.prompt_mask[None].expand(3, -1, -1)
        assert torch.equal(got[real], want[real].long())
        assert following.tolist() == [int(want[:, i][:, made.prompt_mask[i]].max()) + 1 for i in range(4)]
    assert seen == {0, 1, 2, 3}
