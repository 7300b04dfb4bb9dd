"""`gradient_checkpointing`: layers run twice and nothing else changes: latents, losses and gradients, bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrkit.contract.settings import ReasonerSettings
from lrkit.data.collate import TrainBatch, collate_training
from lrkit.data.trail import trail_set
from lrkit.model.build import build_reasoner
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.recomputed import recompute_layers
from lrkit.resources import find_recipe
from lrkit.train.fresh import fresh_backbone, fresh_processor
from lrkit.train.recipe import FreshBackbone, load_recipe
from lrkit.train.run import train
from tests.runs import curve

pytest.importorskip("sklearn")

METHOD = {"replay": {"num_tokens": 3}, "routing": {"depth": 2, "alpha": 3}, "distill": {"weight": 0.7, "window": 2}}
SETTINGS: dict[str, dict[str, Any]] = {
    "the method": METHOD,
    "pruned": {**METHOD, "prune": {"after_layer": 0, "keep": 0.5}},
    "latents at once": {"replay": {"num_tokens": 3}, "think": {"latents": "parallel", "halting": "fixed"}},
    "dropout": {"replay": {"num_tokens": 3}, "lora": {"dropout": 0.2}},
}


def reasoner(settings: dict[str, Any], again: bool) -> tuple[LatentReasoner, TrainBatch]:
    """A small one, with a batch of chains of unlike lengths; `again`: its layers run twice."""
    processor = fresh_processor()
    torch.manual_seed(0)
    size = FreshBackbone(hidden_size=32, intermediate_size=64, num_heads=2, num_kv_heads=1, num_layers=3)
    backbone: Any = fresh_backbone(size, processor)
    trainable = "lora" if "lora" in settings else "full"
    made = build_reasoner(backbone, ReasonerSettings(**settings), processor.latent_id, trainable=trainable)
    with torch.no_grad():
        for router in made.routers.values():
            router.step_encoding_RD.normal_(std=0.1)  # zeros would let routing do nothing
    if again:
        recompute_layers(made.backbone)
    samples = [trail_set("main", "val", 1, hops=(hops,))[0] for hops in (1, 2, 4)]
    return made.train(), collate_training(processor, samples, [len(sample.steps) for sample in samples])


def update(made: LatentReasoner, batch: TrainBatch) -> tuple[list[Tensor], int]:
    """Losses and gradients, and the bytes that were kept between the two ways."""
    torch.manual_seed(1)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = made(batch)
    loss.total.backward()
    gradients = [weight.grad for weight in made.parameters() if weight.grad is not None]
    losses = [loss.total.detach(), loss.speech.detach(), loss.distill.detach()]
    return [*losses, *gradients], sum(kept.values())


@pytest.mark.parametrize("name", SETTINGS)
def test_losses_and_gradients_are_the_same_and_less_is_kept(name: str) -> None:
    want, kept = update(*reasoner(SETTINGS[name], again=False))
    got, less = update(*reasoner(SETTINGS[name], again=True))
    assert len(want) > 20 and len(got) == len(want)
    assert [float((a - b).abs().max()) for a, b in zip(got, want, strict=True)] == [0.0] * len(want)
    assert less < 0.8 * kept


def test_latents_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    think = LatentReasoner.think

    def spied(self: LatentReasoner, state: Any, active_B: Tensor) -> Any:
        replayed = think(self, state, active_B)
        seen.extend([state.last_hidden_BD, state.saliency_BV, replayed.selected_BV])
        return replayed

    monkeypatch.setattr(LatentReasoner, "think", spied)
    runs: list[list[Tensor]] = []
    for again in (False, True):
        seen.clear()
        update(*reasoner(METHOD, again))
        runs.append(list(seen))
    assert len(runs[0]) >= 9 and all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_run_has_the_same_curve_and_may_change_its_mind(tmp_path: Any) -> None:
    values = ["eval.samples=0", *(f"stages.{stage}.updates=2" for stage in range(3))]
    for name, more in (("plain", []), ("again", ["gradient_checkpointing=true"])):
        train(load_recipe(find_recipe("smoke"), [*values, *more]), tmp_path / name, quiet=True)
    assert curve(tmp_path / "plain") == curve(tmp_path / "again")
    assert train(load_recipe(find_recipe("smoke"), values), tmp_path / "again", resume=True, quiet=True).is_dir()
