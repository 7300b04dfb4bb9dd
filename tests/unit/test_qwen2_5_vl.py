"""Windows in which most layers of Qwen2.5-VL's tower attend: who sees whom is as in transformers, and fits the blocks.

Also what of it config.json says, and what is refused.
"""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.vision_utils import get_vision_window_index

from lrkit.errors import CheckpointError
from lrkit.families.common.mrope import mrope_positions
from lrkit.families.protocols import Grid
from lrkit.families.qwen2_5_vl.geometry import WindowedPatches
from lrkit.families.qwen2_5_vl.layout import read_qwen2_5_vl
from lrkit.families.qwen2_5_vl.windows import most_blocks, window_places
from tests.families.conftest import noise
from tests.families.published_qwen2_5_vl import flat_config, nested_config

IMAGE = 7


def theirs(grids: list[Grid], merge: int, side: int) -> list[frozenset[int]]:
    """Windows of transformers, as sets of patches in the order of the picture."""
    index, bounds = get_vision_window_index(torch.tensor(grids), merge, side * merge, 1)
    patches = (index[:, None] * merge**2 + torch.arange(merge**2)).flatten().tolist()
    ends = bounds.tolist()
    return [frozenset(patches[start:end]) for start, end in itertools.pairwise(ends)]


def grids_of(chance: random.Random, merge: int) -> list[Grid]:
    """Pictures of unlike sizes: small, long, large; some with several frames."""
    largest = chance.choice([1, 3, 9, 40])
    return [
        (chance.choice([1, 1, 1, 2]), merge * chance.randint(1, largest), merge * chance.randint(1, largest))
        for _ in range(chance.randint(1, 5))
    ]


def test_windows_are_those_of_transformers_and_fit_the_blocks_that_follow_from_the_patches() -> None:
    chance, cut = random.Random(0), 0
    for _ in range(200):
        merge, side = chance.randint(1, 3), chance.randint(1, 5)
        grids = grids_of(chance, merge)
        slot_of, window_of = window_places(tuple(grids), merge, side).T
        capacity, count = (side * merge) ** 2, len(slot_of)
        ours = {frozenset(np.flatnonzero(window_of == window).tolist()) for window in set(window_of.tolist())}
        assert ours == set(theirs(grids, merge, side))
        assert len(set(slot_of.tolist())) == count and slot_of.min() == 0
        assert slot_of.max() < most_blocks(count, capacity) * capacity
        blocks = slot_of // capacity
        assert all(len(set(blocks[list(window)].tolist())) == 1 for window in ours), "a window lies in one block"
        cut += any(len(window) < capacity for window in ours)
    assert cut > 100


def test_windows_that_are_cut_share_blocks() -> None:
    """Ten pictures of a single visual token need one block, not ten."""
    places = window_places(((1, 2, 2),) * 10, 2, 4)
    assert places[:, 0].max() < 64 and len(set(places[:, 1].tolist())) == 10


def test_still_pictures_have_positions_without_seconds() -> None:
    """Whatever tokens_per_second says: it spaces the frames of videos."""
    chance = random.Random(1)
    for rate in (2, 4, 25):
        config = Qwen2_5_VLConfig(**nested_config(tied=True, width=64, window=56))
        assert config.vision_config is not None
        config.vision_config.tokens_per_second = rate  # pyright: ignore
        with torch.device("meta"):
            model: Any = Qwen2_5_VLModel(config)
        grids = [(1, 2 * chance.randint(1, 9), 2 * chance.randint(1, 9)) for _ in range(3)]
        ids = [1, *(token for _, rows, columns in grids for token in ([IMAGE] * (rows * columns // 4) + [2, 3])), 4]
        kinds = torch.tensor([[int(token == IMAGE) for token in ids]])
        wanted, _ = model.get_rope_index(torch.tensor([ids]), kinds.int(), image_grid_thw=torch.tensor(grids))
        assert np.array_equal(mrope_positions(ids, IMAGE, grids, 2), wanted[:, 0].numpy())


def test_flat_and_nested_files_describe_one_model() -> None:
    """As published; as transformers 4.53 wrote it, both at once; as transformers 5 writes it."""
    flat = flat_config(tied=False, width=64, window=112)
    nested: dict[str, Any] = {
        **nested_config(tied=False, width=64, window=112),
        "model_type": "qwen2_5_vl",
        "dtype": "bfloat16",
    }
    text: dict[str, Any] = {**nested["text_config"], "model_type": "qwen2_5_vl_text", "rope_theta": 1e6}
    sections = text.pop("rope_parameters")["mrope_section"]
    text["rope_scaling"] = {"mrope_section": sections, "rope_type": "default", "type": "default"}
    vision = {**flat["vision_config"], "in_channels": 3, "model_type": "qwen2_5_vl"}
    both = {**flat, "text_config": text, "vision_config": vision}
    layouts = [read_qwen2_5_vl(values, "config.json") for values in (flat, nested, both)]
    for layout in layouts:
        assert layout.tensors == layouts[0].tensors and layout.config == layouts[0].config
        assert layout.cut == {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "window_size": 112}
        given: dict[str, Any] = json.loads(json.dumps(layout.config))
        model = Qwen2_5_VLConfig(**given)
        assert model.vision_config.fullatt_block_indexes == [1]  # pyright: ignore
    assert layouts[0].canonical("visual.blocks.0.norm1.weight") == "model.visual.blocks.0.norm1.weight"
    assert layouts[0].canonical("model.visual.merger.ln_q.weight") == "model.visual.merger.ln_q.weight"
    assert layouts[0].canonical("model.layers.1.mlp.up_proj.weight") in layouts[0].tensors


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window_size": 27}, "window_size 27 is below the 28 pixels of a visual token's side"),
        ({"fullatt_block_indexes": [1, 3]}, "fullatt_block_indexes names layer 3 of a tower with 3"),
        ({"fullatt_block_indexes": [-1]}, "names layer -1"),
        ({"out_hidden_size": 32}, "the tower gives tokens of width 32, the language model takes 64"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"window_size": 0}, "window_size"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type"),
    ],
)
def test_a_tower_that_does_not_go_together_is_refused_in_one_sentence(change: dict[str, Any], said: str) -> None:
    values = flat_config(tied=True, width=64, window=56)
    values["vision_config"] |= change
    with pytest.raises(CheckpointError) as refused:
        read_qwen2_5_vl(values, "config.json")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_window_is_config_jsons_where_the_image_processors_file_names_none(tmp_path: Path) -> None:
    """As in published folders; what lrkit writes names it, so that a bundle needs no config.json."""
    published = WindowedPatches().to_hf()
    del published["window_size"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published), encoding="utf-8")
    assert WindowedPatches.from_folder(tmp_path).window_size == 112
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"vision_config": {"window_size": 84}}), encoding="utf-8")
    geometry = WindowedPatches.from_folder(tmp_path)
    assert (geometry.window_size, geometry.window_side, geometry.window_slots) == (84, 3, 36)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(geometry.to_hf()), encoding="utf-8")
    config.unlink()
    assert WindowedPatches.from_folder(tmp_path) == geometry
    config.write_text(json.dumps({"vision_config": {"window_size": 20}}), encoding="utf-8")
    assert WindowedPatches.from_folder(tmp_path) == geometry, "what the image processor's file names counts"
    published["patch_size"] = 99
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published), encoding="utf-8")
    with pytest.raises(CheckpointError, match="window_size is 20, below the 198 pixels of a visual token's side"):
        WindowedPatches.from_folder(tmp_path)


def test_a_program_is_told_the_windows_of_all_its_pictures() -> None:
    geometry = WindowedPatches(patch_size=4, min_pixels=64, max_pixels=4096, window_size=16)
    sizes = [(8, 8), (64, 24), (8, 8)]
    grids = [geometry.grid(*size) for size in sizes]
    cut = np.concatenate([geometry.cut(noise(*size)) for size in sizes])
    ids = [token for grid in grids for token in (*geometry.picture_ids(grid, IMAGE), 2)]
    feed = geometry.program_feed(ids, IMAGE, grids, cut)
    windows, pictures = feed["patch_windows"][:, 1], feed["patch_picture"]
    assert len(windows) == len(cut)
    assert all(len(set(pictures[windows == window].tolist())) == 1 for window in set(windows.tolist()))
    assert len(geometry.program_feed([2], IMAGE, [], None)["patch_windows"]) == 4
