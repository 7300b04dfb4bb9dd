"""Ceilings of a profile come from work that a family's model does: held against torch's own counter of operations."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lrkit.contract.settings import PruneSettings, ReasonerSettings
from lrkit.export.graph.tower_writer import writer_of
from lrkit.export.weights.reader import reader_of
from lrkit.model.build import build_reasoner
from lrkit.model.open_backbone import load_backbone
from lrkit.profile.ceilings.roofline import phase_work
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.torch.counts import count_reasoner
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts
from tests.families.cases import FamilyCase
from tests.families.conftest import noise

SETTINGS = ReasonerSettings.model_validate({"replay": {"num_tokens": 0}, "routing": {"depth": 0}})


@pytest.mark.parametrize(
    ("count", "keep"), [(1, 1.0), (2, 1.0), (1, 0.25)], ids=["a picture", "two pictures", "a picture, pruned"]
)
@torch.no_grad()
def test_the_work_of_a_prompt_is_what_torch_counts(case: FamilyCase, folder: Path, count: int, keep: float) -> None:
    """The tower alone, then prompt and head. Torch counts all pairs of a causal mask, of which half are needed."""
    if count > 1 and "several_pictures" in case.cannot:
        pytest.skip("one picture a prompt")
    processor = Processor.from_folder(folder)
    settings = SETTINGS.model_copy(update={"prune": PruneSettings(after_layer=0, keep=keep)})
    reasoner = build_reasoner(load_backbone(str(folder), torch.float32), settings, processor.latent_id).eval()
    prompt = processor.encode_prompt([noise(224, 112, seed) for seed in range(count)], case.question)
    prompts, backbone = collate_prompts([prompt], processor.pad_id), reasoner.backbone
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as seen:
            assert prompts.pixel_values is not None and prompts.grids is not None
            backbone.encode_images(prompts.pixel_values, prompts.grids)
        with FlopCounterMode(display=False) as whole:
            reasoner.logits(reasoner.prefill(prompts).last_hidden_BD)
    counts = count_reasoner(reasoner)
    assert prompt.patches is not None and counts.attention is not None
    tokens = len(prompt.ids)
    means = {"prefilled_tokens": float(tokens), "patches": float(len(prompt.patches)), "pictures": float(count)}
    work = phase_work(counts, means)
    assert work["vision"].flops == pytest.approx(seen.get_total_flops(), rel=0.01)
    visual = prompt.ids.count(processor.image_id)
    left = tokens - visual + math.ceil(visual * keep)
    pairs = tokens**2 + (backbone.num_layers - 1) * left**2
    halved = 2 * pairs * counts.attention.query_width
    assert work["prefill"].flops + halved == pytest.approx(whole.get_total_flops() - seen.get_total_flops(), rel=0.02)


def test_a_program_is_counted_as_the_model_is(case: FamilyCase, folder: Path) -> None:
    backbone = load_backbone(str(folder), torch.float32)
    tower = backbone.model.get_submodule(reader_of(case.name).tower)
    sizes = writer_of(case.name).sizes(tower)
    reasoner = build_reasoner(backbone, SETTINGS, 0)
    counts = count_reasoner(reasoner)
    assert (sizes.weights, sizes.merger_weights) == (counts.weights["vision"], counts.weights["merger"])
    attention = backbone.attention
    assert (sizes.width, sizes.depth, sizes.windows) == (
        attention.vision_width, attention.vision_depth, attention.vision_windows,
    )  # fmt: skip
