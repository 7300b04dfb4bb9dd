"""The fake family under lrkit equals the fake family alone, bit for bit, where nothing is replayed or refined."""

from typing import Any

import numpy as np
import pytest
import torch

from lrkit.contract.settings import ReasonerSettings
from lrkit.model.build import build_reasoner
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts
from tests.fake_family.backbone import RowwiseBackbone
from tests.fake_family.folder import rowwise_model, rowwise_processor
from tests.fake_family.geometry import patch_places

SETTINGS = ReasonerSettings.model_validate(
    {"think": {"max_latent_steps": 2}, "replay": {"num_tokens": 0}, "routing": {"depth": 1, "alpha": 4}}
)
"""Routing runs, and its step encodings are zero in a new reasoner."""


def picture(seed: int, width: int, height: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("more", [{}, {"deep": (1, 0)}, {"deep": (0,), "head_dim": 12}])
@torch.no_grad()
def test_a_new_reasoner_is_its_backbone(more: dict[str, Any]) -> None:
    """Also with features that image tokens add behind the first layers, and with norms over heads of another width."""
    processor = rowwise_processor()
    alone = rowwise_model(processor, **more)
    backbone = RowwiseBackbone(rowwise_model(processor, **more))
    reasoner = build_reasoner(backbone, SETTINGS, processor.latent_id).eval()
    for pictures in ([picture(1, 48, 32)], [picture(2, 40, 24), picture(3, 16, 64)], []):
        prompt = processor.encode_prompt(pictures, "Which colour ?")
        batch = collate_prompts([prompt], processor.pad_id)
        state = reasoner.prefill(batch)
        got = reasoner.logits(state.last_hidden_BD)
        pixels = torch.zeros(0, 192) if batch.pixel_values is None else batch.pixel_values
        places = torch.from_numpy(patch_places(prompt.grids)) if pictures else torch.zeros(0, 3, dtype=torch.long)
        want = alone.next_logits(batch.input_ids, pixels, places)
        others = [index for index in range(want.shape[1]) if index != processor.latent_id]
        assert torch.equal(got[:, others], want[:, others])


@torch.no_grad()
def test_the_cut_is_undone_and_done_again() -> None:
    processor, geometry = rowwise_processor(), rowwise_processor().geometry
    backbone = RowwiseBackbone(rowwise_model(processor))
    prompt = processor.encode_prompt([picture(4, 40, 24)], "Which colour ?")
    assert prompt.patches is not None
    values = torch.from_numpy(geometry.pixel_values(prompt.patches))
    image = backbone.unpatch(values, prompt.grids[0])
    want = torch.from_numpy(picture(4, 40, 24)).permute(2, 0, 1).float()
    torch.testing.assert_close((image * 127.5 + 127.5), want, rtol=0, atol=1e-4)
    assert torch.equal(backbone.patch(image), values)
