"""A replay weighting is one row with both halves: torch's function, and what writes the same into a program.

Once the export had a table of its own, with a default: what it did not know it wrote as another weighting. The toy here
is added as anybody would add one: two halves and a row.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from lrkit.config import load_config
from lrkit.contract.settings import ReasonerSettings, ReplaySettings
from lrkit.contract.weightings import WEIGHTINGS, WeightingRow
from lrkit.errors import ConfigError
from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.replay_nodes import Weighting
from lrkit.export.graph.writer import Writer
from lrkit.export.targets.target import Target
from lrkit.model.replay import weigh
from lrkit.registry import load_object
from tests.programs import Runner, assert_equal, build
from tests.tiny import batch, prompt, tiny_reasoner

PROMPTS = [prompt(3, grids=((1, 4, 4), (1, 2, 6))), prompt(5, grids=((1, 2, 2),))]
"""Seven visual tokens, and one: with three a step, slots stay empty."""


def saturating(score_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """s / (s + 0.1)."""
    score_BK = score_BK.masked_fill(~valid_BK, 0.0)
    return score_BK / (score_BK + 0.1)


def _write_saturating(g: Graph, write: Writer, score: Value, valid: Value) -> Value:
    score = g.op("Where", valid, score, np.array(0, np.float32))
    return g.op("Div", score, g.op("Add", score, np.array(0.1, np.float32)))


SATURATING = Weighting(_write_saturating, _write_saturating)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTINGS, "toy", WeightingRow(f"{__name__}:saturating", f"{__name__}:SATURATING"))


def settings(slots: int) -> ReasonerSettings:
    return ReasonerSettings.model_validate(
        {"think": {"max_latent_steps": 3}, "replay": {"num_tokens": slots, "weighting": "toy"}}
    )


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_both_halves_of_every_row_are_there(name: str) -> None:
    score, valid = torch.tensor([[0.3, 0.1, 9.0]]), torch.tensor([[True, True, False]])
    weights = load_object(WEIGHTINGS[name].torch)(score, valid)
    assert weights.shape == score.shape and weights[0, 2] == 0 and bool((weights[0, :2] > 0).all())
    torch.testing.assert_close(weigh(score, valid, name), weights)
    assert isinstance(load_object(WEIGHTINGS[name].graph), Weighting)
    assert ReplaySettings(weighting=name).weighting == name


def test_a_name_without_a_row_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="input should be 'softmax', 'relative' or 'none'; did you mean 'softmax'"):
        load_config(ReasonerSettings, {"replay": {"weighting": "softmx"}})


def test_a_name_is_allowed_once_it_has_a_row(toy: None) -> None:
    assert load_config(ReasonerSettings, {"replay": {"weighting": "toy"}}).replay.weighting == "toy"


@pytest.mark.parametrize("slots", [1, 3])
def test_a_new_weighting_trains_and_its_program_equals_torch(toy: None, slots: int) -> None:
    """One step of training, then the program in both dialects."""
    reasoner = tiny_reasoner(settings(slots), trainable="lora")
    before = {name: p.detach().clone() for name, p in reasoner.named_parameters()}
    chosen = batch(PROMPTS, num_latents=[2, 1], speech=[[9, 10, 11], [12, 13, 14]])
    reasoner(chosen).total.backward()
    torch.optim.SGD([p for p in reasoner.parameters() if p.requires_grad], lr=0.1).step()
    moved = [name for name, p in reasoner.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) > 20
    reasoner.requires_grad_(False)
    for dialect in ("ort", "standard"):
        runner = Runner(build(reasoner, Target(dialect=dialect)))
        for one in PROMPTS:
            answer = assert_equal(reasoner, runner, one, fixed=True)
            assert any(0 < token.weight < 1 for step in answer.replayed for token in step), "the toy's own weights"
