"""A plan of training against the run that it is of: weights counted exactly, what autograd keeps, and operations by
torch's own counter, for every family, every way to train and both number types.

Legend of `WAYS`: what trains, number type.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lrkit.train.accelerator import make_accelerator
from lrkit.train.checks import check_init
from lrkit.train.curriculum import Curriculum
from lrkit.train.plan.batches import sizes_of
from lrkit.train.plan.kept import CPU, kept_bytes, tower_kept
from lrkit.train.plan.opened import open_plan
from lrkit.train.plan.work import batch_work
from lrkit.train.recipe import Recipe, load_recipe
from lrkit.train.shards import hold
from lrkit.train.start import Start, load_start
from tests.families.cases import case_of
from tests.published import write_drawn_samples

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "chameleon")
WAYS = [
    ("lora", "bfloat16"),
    pytest.param("full", "float32", marks=pytest.mark.slow),
    pytest.param("lora", "float32", marks=pytest.mark.slow),
    pytest.param("full", "bfloat16", marks=pytest.mark.slow),
]
KEPT_TOLERANCE = {"lora": 0.04, "full": 0.1}
"""Of the bytes that autograd keeps; towers that train keep what few of their formulas tell."""
FLOPS_TOLERANCE = 0.02
"""Of the operations that torch counts: scores of saliency and routers are left out."""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawn_samples(tmp_path_factory.mktemp("drawn"), count=6)


def started(recipe: Recipe) -> Start:
    torch.manual_seed(0)
    half = recipe.precision == "bfloat16" and recipe.trainable == "lora"
    start = load_start(recipe, check_init(recipe).settings, torch.bfloat16 if half else torch.float32)
    start.reasoner.train()
    return start


def holds(recipe: Recipe, stages: Iterator[int] | range) -> None:
    """Weights, kept bytes and operations of the stages, as planned and as they are."""
    opened, start = open_plan(recipe, gpu=False), started(recipe)
    model, reasoner = opened.model, start.reasoner
    if recipe.shard:
        hold(make_accelerator(recipe), reasoner, recipe.optimizer, reasoner.backbone.model, recipe.shard)
    assert sum(model.weights.values()) == sum(weight.numel() for weight in reasoner.parameters())
    trained = [weight for weight in reasoner.parameters() if weight.requires_grad]
    assert sum(model.trained.values()) == sum(weight.numel() for weight in trained)
    assert model.weight_bytes == sum(weight.numel() * weight.element_size() for weight in reasoner.parameters())
    source = recipe.data.open(recipe.seed, recipe.stages)
    curriculum = Curriculum(recipe, source, start.processor, reasoner.settings.think)
    half = recipe.precision == "bfloat16"
    for index in stages:
        batch = curriculum.batch(index)
        sizes = sizes_of(batch, start.processor)
        logits = sizes.samples * (5 * sizes.speech + 4 * sizes.latents) * model.vocabulary
        kept = sum(kept_bytes(model, sizes, CPU).values()) + tower_kept(model, sizes, opened.patch_values)
        really = kept_by_autograd(reasoner, batch, half)
        tolerance = KEPT_TOLERANCE[recipe.trainable]
        assert kept + logits + 2 * model.cast == pytest.approx(really, rel=tolerance), recipe.stages[index].name
        work = batch_work(model, sizes, CPU)
        planned = work.flops - work.phases["optimizer"].flops
        assert planned == pytest.approx(flops(reasoner, batch, half), rel=FLOPS_TOLERANCE), recipe.stages[index].name


def kept_by_autograd(reasoner: nn.Module, batch: Any, half: bool) -> int:
    """Bytes of all tensors that are saved for the backward pass and are no weights."""
    weights = {weight.untyped_storage()._cdata for weight in reasoner.parameters()}  # pyright: ignore[reportPrivateUsage]
    seen: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:  # pyright: ignore[reportPrivateUsage]
            seen[storage._cdata] = storage  # held, so that no other takes its place  # pyright: ignore[reportPrivateUsage]
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = reasoner(batch).total
        found = sum(storage.nbytes() for storage in seen.values())
    del loss
    return found


def flops(reasoner: nn.Module, batch: Any, half: bool) -> float:
    counter = FlopCounterMode(display=False)
    # The counter does not know the CPU's own kernel of attention, but all that the plain one is made of.
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, enabled=half), counter:
        reasoner(batch).total.backward()
    reasoner.zero_grad()
    return counter.get_total_flops()


def test_the_tiny_recipe_is_planned_as_it_runs() -> None:
    """Latents, replay and distillation over LoRA; each stage, from words alone to latents alone."""
    recipe = load_recipe("trail-latent", ["batch_size=4", "stages.5.batch_size=4", "model.distill.weight=0.5"])
    holds(recipe, range(1, len(recipe.stages)))


def test_layers_that_run_once_more_are_counted_once_more() -> None:
    """Gradient checkpointing: the operations of a stage by torch's own counter, against the plan's."""
    from lrkit.model.recomputed import recompute_layers

    recipe = load_recipe("trail-latent", ["batch_size=4", "gradient_checkpointing=true"])
    opened, start = open_plan(recipe, gpu=False), started(recipe)
    recompute_layers(start.reasoner.backbone)
    source = recipe.data.open(recipe.seed, recipe.stages)
    batch = Curriculum(recipe, source, start.processor, start.reasoner.settings.think).batch(2)
    work = batch_work(opened.model, sizes_of(batch, start.processor), CPU)
    planned = work.flops - work.phases["optimizer"].flops
    assert planned == pytest.approx(flops(start.reasoner, batch, half=False), rel=FLOPS_TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize(("what", "number"), WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_planned_as_it_runs(family: str, what: str, number: str, lines: Path, tmp_path: Path) -> None:
    """The paper's recipe with routing in all layers. Replay takes up all visual tokens of these small pictures."""
    folder = next(iter(case_of(family).variants.values()))(tmp_path / family)
    changes = [f"init={folder}", f"data.train={lines}", "batch_size=3", f"trainable={what}", f"precision={number}"]
    recipe = load_recipe("m3cot-style", [*changes, "model.routing.layers=all", "model.replay.num_tokens=3"])
    holds(recipe, range(0, len(recipe.stages), 4))


@pytest.mark.parametrize("family", ["qwen2_vl", *(pytest.param(f, marks=pytest.mark.long) for f in FAMILIES[1:])])
def test_weights_that_compute_in_bfloat16_are_planned_as_they_run(family: str, lines: Path, tmp_path: Path) -> None:
    """`shard: true` over all weights: nothing is cast, so matrices share one input, and no copies are made."""
    folder = next(iter(case_of(family).variants.values()))(tmp_path / family)
    changes = [f"init={folder}", f"data.train={lines}", "batch_size=3", "trainable=full", "precision=bfloat16"]
    recipe = load_recipe("m3cot-style", [*changes, "shard=true", "model.replay.num_tokens=3"])
    holds(recipe, range(0, len(recipe.stages), 4))
