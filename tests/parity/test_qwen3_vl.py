"""What is particular to Qwen3-VL, against plain transformers: learnt positions interpolated over any grid, features of
several layers of the tower, and rotary angles whose axes interleave."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from lrkit.contract.settings import ReasonerSettings
from lrkit.export.graph.tower_pieces import folded
from lrkit.export.graph.writer import PIXEL_CENTRE, PIXEL_UNIT
from lrkit.families.qwen3_vl.backbone import Qwen3VLBackbone
from lrkit.families.qwen3_vl.geometry import Qwen3VLPatches
from lrkit.families.qwen3_vl.tower import TraceableTower, corners
from lrkit.families.qwen3_vl.weights import PART as WEIGHTS
from lrkit.model.build import build_reasoner
from tests.tiny import Batch

GEOMETRY = Qwen3VLPatches(patch_size=4, min_pixels=64, max_pixels=4096, image_mean=(0.5, 0.4, 0.3))
IMAGE, LATENT = 60, 61
Grids = list[tuple[int, int, int]]
ONE, ODD, SEVERAL = [(1, 2, 2)], [(1, 6, 10)], [(1, 2, 2), (1, 14, 2), (1, 6, 10), (1, 4, 4)]


def tiny_config(deep: tuple[int, ...] = (0, 2), table: int = 25) -> Qwen3VLConfig:
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_interleaved": True, "mrope_section": [4, 2, 2]}
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 64, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": rotary, "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "out_hidden_size": 24,
            "patch_size": 4, "num_position_embeddings": table, "deepstack_visual_indexes": list(deep),
        },
        image_token_id=IMAGE, video_token_id=62, vision_start_token_id=58, vision_end_token_id=59,
        tie_word_embeddings=True,
    )  # fmt: skip


def tiny_model(config: Qwen3VLConfig, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def random_patches(grids: Grids, seed: int = 0) -> np.ndarray:
    count = sum(rows * columns for _, rows, columns in grids)
    return np.random.default_rng(seed).integers(0, 256, (count, GEOMETRY.patch_bytes), dtype=np.uint8)


def places_of(grids: Grids) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in GEOMETRY.tower_feed(grids).values())


@pytest.mark.parametrize("side", [1, 2, 7, 48])
def test_learnt_positions_are_taken_from_the_same_places_with_the_same_weights(side: int) -> None:
    chance = random.Random(side)
    for _ in range(40):
        grids = [(1, 2 * chance.randint(1, 40), 2 * chance.randint(1, 40)) for _ in range(chance.randint(1, 3))]
        positions, _, sizes = places_of(grids)
        as_tensor = torch.tensor(grids)
        assert torch.equal(positions, get_vision_position_ids(as_tensor, 2))
        rows, weights = get_vision_interpolation_indices_and_weights(
            as_tensor, side, mode="bilinear", align_corners=True, spatial_merge_size=2
        )
        got = corners(positions, sizes, side)
        assert torch.equal(got[0], rows) and torch.equal(got[1], weights)


@pytest.mark.parametrize("table", [1, 25, 2304])
@pytest.mark.parametrize("grids", [ONE, ODD, SEVERAL], ids=["one token", "odd", "several"])
@torch.no_grad()
def test_the_tower_of_a_program_gives_what_transformers_gives(grids: Grids, table: int) -> None:
    tower: Any = tiny_model(tiny_config(table=table)).model.visual
    patches = random_patches(grids)
    seen = tower(torch.from_numpy(GEOMETRY.pixel_values(patches)), grid_thw=torch.tensor(grids))
    want = torch.cat((seen.pooler_output, *seen.deepstack_features), dim=-1)
    traceable = TraceableTower(tower, folded(tower.patch_embed.proj, GEOMETRY), fused=False)
    numbers = (torch.from_numpy(patches).float() - PIXEL_CENTRE) * PIXEL_UNIT
    got = traceable(numbers, *places_of(grids))
    assert got.shape == (len(patches) // 4, 24 * 3)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_visual_tokens_carry_the_features_of_each_layer_that_gives_some() -> None:
    for deep in ((), (1,), (0, 2), (0, 1, 2)):
        backbone = Qwen3VLBackbone(tiny_model(tiny_config(deep)))
        pixels = torch.from_numpy(GEOMETRY.pixel_values(random_patches(SEVERAL)))
        grids = torch.tensor(SEVERAL)
        tokens = backbone.encode_images(pixels, grids)
        alone = backbone.model.model.visual(pixels, grid_thw=grids)
        assert backbone.deep_layers == tuple(range(len(deep))) and tokens.shape[1] == 24 * (1 + len(deep))
        assert torch.equal(tokens[:, :24], alone.pooler_output)
        for number, features in enumerate(alone.deepstack_features, 1):
            assert torch.equal(tokens[:, 24 * number : 24 * (number + 1)], features)


@torch.no_grad()
def test_each_frequency_turns_by_the_axis_that_transformers_gives_it() -> None:
    for sections in ([4, 2, 2], [2, 3, 3], [8, 0, 0], [0, 4, 4]):
        config: Any = tiny_config()
        config.text_config.rope_parameters["mrope_section"] = sections
        backbone = Qwen3VLBackbone(tiny_model(config))
        positions = torch.tensor([[[5, 0]], [[31, 2]], [[77, 9]]])
        cos, sin = backbone.rotary(positions, torch.zeros(1, 2, 24))
        dims = WEIGHTS.dimensions(config)
        own = positions[list(dims.rotary_axes), 0].T * torch.tensor(dims.inverse_frequencies)
        torch.testing.assert_close(cos[0], own.cos().repeat(1, 2), rtol=0, atol=1e-5)
        torch.testing.assert_close(sin[0], own.sin().repeat(1, 2), rtol=0, atol=1e-5)


def test_places_of_patches_are_those_of_their_own_picture() -> None:
    positions, pictures, sizes = (array.numpy() for array in places_of(SEVERAL))
    for number, (_, rows, columns) in enumerate(SEVERAL):
        own = pictures == number
        assert own.sum() == rows * columns and (sizes[own] == (rows, columns)).all()
        assert positions[own].max(axis=0).tolist() == [rows - 1, columns - 1]


@pytest.mark.parametrize("formation", ["tokens", "soft_mix"])
@torch.no_grad()
def test_replayed_tokens_add_their_features_as_plain_transformers_would(formation: str) -> None:
    """A latent step after a prompt is the same as one longer sequence of the language model, whose replayed tokens are
    marked as visual and bring their features along."""
    backbone = Qwen3VLBackbone(tiny_model(tiny_config((0, 1, 2))))
    settings = {"replay": {"num_tokens": 3, "formation": formation}, "routing": {"depth": 0}}
    reasoner = build_reasoner(backbone, ReasonerSettings.model_validate(settings), LATENT).eval()
    grids = [(1, 6, 4), (1, 2, 2)]
    ids = torch.tensor([[3, 58, *[IMAGE] * 6, 59, 58, IMAGE, 59, 7, 8]])
    pixels = torch.from_numpy(GEOMETRY.pixel_values(random_patches(grids)))
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), pixels, torch.tensor(grids), (2,))
    state = reasoner.prefill(batch)
    latent = reasoner.latent.as_input(state.last_hidden_BD)[:, None]
    replayed = reasoner.think(state, torch.tensor([True]))
    assert replayed is not None
    rows, text = replayed.tokens_BRE, backbone.model.model.language_model
    tokens = backbone.encode_images(pixels, torch.tensor(grids))
    visual = ids == IMAGE
    embeds = text.embed_tokens(ids).masked_scatter(visual[..., None], tokens[:, :24])
    places, _ = backbone.model.model.get_rope_index(ids, visual.int(), image_grid_thw=torch.tensor(grids))
    later = places.max() + 1 + torch.arange(rows.shape[1] + 1).expand(3, 1, -1)
    shown = torch.cat((visual, torch.ones(rows.shape[:2], dtype=torch.bool), torch.tensor([[False]])), 1)
    deep = torch.cat((tokens[:, 24:], rows[0, :, 24:])).split(24, dim=-1)
    whole = text(
        inputs_embeds=torch.cat((embeds, rows[..., :24], latent), 1), position_ids=torch.cat((places, later), -1),
        visual_pos_masks=shown, deepstack_visual_embeds=list(deep), use_cache=False,
    )  # fmt: skip
    assert rows[..., 24:].abs().min() > 0, "there is something to add"
    torch.testing.assert_close(state.last_hidden_BD, whole.last_hidden_state[:, -1], rtol=1e-4, atol=1e-4)
