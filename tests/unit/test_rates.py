"""Learning rates of their own for weights of the method (`optimizer.rates`)."""

from collections import Counter

import pytest
import torch
from torch import nn

from lrkit.contract.settings import RoutingSettings
from lrkit.errors import ConfigError
from lrkit.model.routing import RoutedLayer
from lrkit.train.checks import check_start
from lrkit.train.optim import build_optimizers, learning_rate, own_group, set_learning_rate
from lrkit.train.recipe import Recipe, load_recipe, overlay
from lrkit.train.stage import OptimizerConfig

WIDTH = 4


class Model(nn.Module):
    """Weights under the names that they have in a reasoner."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(WIDTH, WIDTH)
        self.routers = nn.ModuleDict({"1": RoutedLayer(RoutingSettings(depth=2), 1, 4, WIDTH)})
        self.latent = nn.Embedding(1, WIDTH)
        self.token_sr = nn.Linear(WIDTH, WIDTH)


def moved(config: OptimizerConfig) -> dict[str, float]:
    """How far the first update moves each weight: AdamW moves each number by the rate, whatever its gradient."""
    made = Model()
    before = {name: weight.detach().clone() for name, weight in made.named_parameters()}
    optimizers = build_optimizers(made.named_parameters(), config)
    set_learning_rate(optimizers, learning_rate(config, 0, 10))
    for weight in made.parameters():
        weight.grad = torch.ones_like(weight)
    for optimizer in optimizers:
        optimizer.step()
    return {name: float((weight.detach() - before[name]).abs().mean()) for name, weight in made.named_parameters()}


def recipe(**changes: object) -> Recipe:
    init = {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 1}
    stages = [{"name": "say", "updates": 2}]
    return load_recipe({"name": "test", "init": init, "trainable": "full", "stages": stages, **changes})


def test_step_encodings_learn_as_fast_as_they_are_told() -> None:
    """They start at zero and moved by the common rate: after 140 updates an extra pass still added under 1% of its
    result, so runs with routing and without were one and the same."""
    common = {"lr": 1e-3, "weight_decay": 0.0, "warmup": 2}
    rates = {"rates": {"step_encodings": 20.0}}
    slow, fast = (moved(OptimizerConfig.model_validate({**common, **more})) for more in ({}, rates))
    assert all(value == pytest.approx(5e-4, rel=1e-3) for value in slow.values())
    name = "routers.1.step_encoding_RD"
    assert fast.pop(name) == pytest.approx(1e-2, rel=1e-3)
    slow.pop(name)
    assert fast == pytest.approx(slow, rel=1e-3)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_weight_is_updated_once_and_has_the_factor_of_its_group(kind: str) -> None:
    made = Model()
    rates = {"step_encodings": 20.0, "routers": 2.0, "latent": 0.5, "distillation": 20.0}
    config = OptimizerConfig.model_validate({"kind": kind, "lr": 1.0, "rates": rates})
    optimizers = build_optimizers(made.named_parameters(), config)
    set_learning_rate(optimizers, 3.0)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    got = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    assert Counter(id(weight) for group in groups for weight in group["params"]) == Counter(map(id, made.parameters()))
    for name, weight in made.named_parameters():
        group = own_group(name)
        assert got[id(weight)] == 3.0 * (config.rates[group] if group else 1.0), name


def test_without_rates_groups_are_matrices_and_vectors() -> None:
    """As in every state that was saved before there were rates, so that these runs go on."""
    (adamw,) = build_optimizers(Model().named_parameters(), OptimizerConfig(weight_decay=0.3))
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.3, 0.0]
    saved = adamw.state_dict()
    for group in saved["param_groups"]:
        del group["rate"]
    adamw.load_state_dict(saved)
    set_learning_rate([adamw], 0.25)
    assert [group["lr"] for group in adamw.param_groups] == [0.25, 0.25]


def test_weights_of_the_backbone_are_in_no_group() -> None:
    names = ("model.layers.0.mlp.routers.weight", "readout_tables.rooms", "model.latent.weight")
    assert [own_group(name) for name in names] == [None] * 3
    assert own_group("reasoner.routers.1.router.0.weight") == own_group("routers.1.router.bias") == "routers"


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ({"step_encoding": 2.0}, "step_encodings"),
        ({"routers": 0.0}, "rates.routers: got 0.0"),
        ({"latent": "2"}, "rates"),
    ],
)
def test_rates_that_mean_nothing_are_refused(rates: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe(optimizer={"rates": rates})


def test_rates_of_weights_that_are_not_there_are_refused_before_the_run() -> None:
    """A rate for step encodings without routing would say that routing was trained."""
    stages = [{"name": "say", "updates": 2, "optimizer": {"rates": {"distillation": 3.0, "latent": 2.0}}}]
    asked = recipe(optimizer={"rates": {"step_encodings": 20.0}}, model={"routing": {"depth": 0}}, stages=stages)
    with pytest.raises(ConfigError) as caught:
        check_start(asked)
    one, two = str(caught.value).splitlines()
    assert one.startswith("optimizer.rates: step_encodings") and "set model.routing.depth above 0" in one
    assert two.startswith("stages.0.optimizer.rates: distillation") and "latent" not in two
    check_start(recipe(optimizer={"rates": {"step_encodings": 20.0}}, model={"routing": {"depth": 1}}))


def test_rates_of_a_stage_are_laid_over_those_of_the_recipe() -> None:
    base = OptimizerConfig(rates={"step_encodings": 20.0, "routers": 2.0})
    assert overlay(base, OptimizerConfig(rates={"routers": 3.0})).rates == {"step_encodings": 20.0, "routers": 3.0}
