"""Models with random weights of every family: those that `init: family:` trains, and those of a flat list of sizes."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lrkit.contract.settings import ReasonerSettings
from lrkit.data.shapes import load_shape, shape_processor
from lrkit.families.table import load_part
from lrkit.model.build import build_reasoner
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts
from lrkit.train.fresh import fresh_backbone, fresh_processor
from lrkit.train.recipe import FreshBackbone
from tests.families.cases import FamilyCase

QUESTION = "Take 4 hops. Which room are you in?"


def test_a_fresh_model_reads_a_board(case: FamilyCase) -> None:
    """With the sizes of a recipe that names the family alone. config.json of what is trained is one that the family
    reads again, weight by weight."""
    torch.manual_seed(0)
    processor = fresh_processor(family=case.name)
    backbone = fresh_backbone(FreshBackbone(family=case.name), processor)
    values = json.loads(backbone.model.config.to_json_string(use_diff=False))
    layout = load_part(case.name, "layout")(values, "config.json")
    made = {name: tuple(parameter.shape) for name, parameter in backbone.model.named_parameters()}
    assert {name: size for name, size in made.items() if name not in layout.copies} == dict(layout.tensors)
    assert layout.image_id == processor.image_id
    reasoner = build_reasoner(backbone, ReasonerSettings(), processor.latent_id).eval()
    prompt = processor.encode_prompt([Image.new("RGB", (96, 96), "red")], QUESTION)
    assert len(prompt.ids) < FreshBackbone().max_positions
    with torch.no_grad():
        logits = reasoner.logits(reasoner.prefill(collate_prompts([prompt], processor.pad_id)).last_hidden_BD)
    assert torch.isfinite(logits).any()


def test_a_flat_list_of_sizes_may_name_the_family(case: FamilyCase, tmp_path: Path) -> None:
    flat: dict[str, Any] = {
        "description": "a few thousand weights", "family": case.name, "hidden_size": 64, "num_layers": 2,
        "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 96, "vocabulary": 256, "tied_embeddings": False,
        "vision_depth": 2, "vision_width": 64, "vision_heads": 4, "vision_mlp_ratio": 2, "patch_size": 8,
        "merge_size": 2, "image_size": [64, 64],
    }  # fmt: skip
    file = tmp_path / "flat.json"
    file.write_text(json.dumps(flat), encoding="utf-8")
    shape = load_shape(str(file))
    assert (shape.family, shape.layout.width, shape.layout.num_layers) == (case.name, 64, 2)
    processor = shape_processor(shape)
    prompt = processor.encode_prompt([Image.new("RGB", shape.picture)], QUESTION)
    assert prompt.ids.count(processor.image_id) == processor.geometry.num_visual_tokens(prompt.grids[0]) > 0
