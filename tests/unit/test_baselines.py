"""The baselines of latents: constants, all latents at once, a cut gradient. Parity with a full recompute is in
tests/parity/test_reasoner_reference.py, that of programs in tests/parity/test_program_options.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lrkit.checkpoints.whole_weights import check_weights
from lrkit.contract.settings import ReasonerSettings, ThinkSettings
from lrkit.data.collate import TrainBatch
from lrkit.errors import UserError
from lrkit.model.checkpoint import load_checkpoint, save_checkpoint
from lrkit.model.generate import GenerationLimits, generate
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.recorded import StepRecorder
from lrkit.runtime.engines.torch.engine import check_recordable
from lrkit.train.curriculum import Curriculum
from lrkit.train.fresh import fresh_processor
from lrkit.train.recipe import load_recipe
from tests.lab import PROMPTS, rich_reasoner, settings
from tests.tiny import EOS, batch

AT_ONCE: dict[str, Any] = {"max_latent_steps": 3, "latents": "parallel", "halting": "fixed"}
LIMITS = GenerationLimits(EOS, max_new_tokens=4)


def reasoner(**think: Any) -> LatentReasoner:
    return rich_reasoner(settings(think={"max_latent_steps": 3, **think}, replay={"num_tokens": 2}))


def test_files_of_models_that_are_no_baselines_are_as_before() -> None:
    assert list(ReasonerSettings().model_dump()["think"]) == ["max_latent_steps", "halting", "latent_scale"]
    written = ReasonerSettings(think=ThinkSettings(latents="pause")).model_dump(mode="json")
    assert written["think"]["latents"] == "pause" and "passes" not in written["think"]
    assert ReasonerSettings.model_validate(json.loads(json.dumps(written))).think.latents == "pause"


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"think": {"latents": "parallel"}}, "set halting: fixed"),
        ({"think": {"latents": "pause", "max_latent_steps": 0}}, "set max_latent_steps of 1 or more"),
        ({"think": {"latents": "pause", "passes": 2}}, "set passes: 1, or latents: parallel"),
        ({"think": {"passes": 2}}, "set passes: 1, or latents: parallel"),
        ({"think": {"latents": "pause", "gradient": "cut"}}, "set gradient: full"),
        ({"think": AT_ONCE, "distill": {"pointing": 1.0}}, "set distill.pointing=0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ReasonerSettings.model_validate(sections)


@pytest.mark.parametrize(("think", "flows"), [({}, True), ({"gradient": "cut"}, False), ({"latents": "pause"}, False)])
def test_whether_gradient_flows_from_a_latent_into_what_it_was_made_of(think: dict[str, Any], flows: bool) -> None:
    one = reasoner(**think)
    state = one.prefill(batch(PROMPTS))
    state.last_hidden_BD = made_of = state.last_hidden_BD.detach().requires_grad_()
    one.think(state, torch.ones(len(PROMPTS), dtype=torch.bool))
    (found,) = torch.autograd.grad(state.last_hidden_BD.sum(), made_of, allow_unused=True)
    assert (found is not None and bool(found.any())) == flows


@torch.no_grad()
def test_passes_end_where_latents_one_by_one_do() -> None:
    """Each pass makes one more latent what it is when they are taken in turn, so as many passes as latents suffice."""
    one = rich_reasoner(settings(think={**AT_ONCE, "passes": 3}, replay={"num_tokens": 0}))
    count_B, made = torch.tensor([3, 2, 0, 1]), batch(PROMPTS)
    at_once, in_turn = one.prefill(made), one.prefill(made)
    one.think_at_once(at_once, count_B)
    for step in range(3):
        one.think(in_turn, count_B > step)
    torch.testing.assert_close(at_once.last_hidden_BD, in_turn.last_hidden_BD, atol=1e-5, rtol=0)
    assert at_once.latent_steps_B.tolist() == count_B.tolist()
    assert at_once.next_position_B.tolist() == in_turn.next_position_B.tolist()


@torch.no_grad()
def test_how_latents_at_once_are_counted() -> None:
    one = reasoner(**AT_ONCE, passes=2)
    for answer in generate(one, batch(PROMPTS), "latent", LIMITS):
        assert (answer.latent_steps, answer.halting, len(answer.replayed)) == (3, "fixed", 3)
        assert not any(answer.replayed[1:])
        assert answer.ar_steps == 2 + len(answer.token_ids) - (not answer.finished)
    asked = GenerationLimits(EOS, max_new_tokens=4, max_latent_steps=1)
    assert {answer.latent_steps for answer in generate(one, batch(PROMPTS), "latent", asked)} == {1}


@torch.no_grad()
def test_what_latents_at_once_cannot_do_is_one_sentence() -> None:
    one = reasoner(**AT_ONCE)
    with pytest.raises(UserError, match="leave halting out, or set it to fixed"):
        generate(one, batch(PROMPTS), "latent", GenerationLimits(EOS, halting="adaptive"))
    with pytest.raises(UserError, match="leave cuda_graphs out"):
        generate(one, batch(PROMPTS), "latent", LIMITS, recorder=StepRecorder(one))
    with pytest.raises(UserError, match="leave cuda_graphs out"):
        check_recordable(one.settings, cuda_graphs=True)


@torch.no_grad()
def test_recorded_steps_read_the_constant_of_their_step() -> None:
    one = reasoner(latents="pause", halting="fixed")
    plain = generate(one, batch(PROMPTS), "latent", LIMITS)
    recorded = generate(one, batch(PROMPTS), "latent", LIMITS, recorder=StepRecorder(one))
    assert [answer.token_ids for answer in recorded] == [answer.token_ids for answer in plain]
    changed = one.latent.constant_TD[1].neg_()
    assert changed.any() and generate(one, batch(PROMPTS), "latent", LIMITS) != plain


def test_a_checkpoint_keeps_its_constants(tmp_path: Path) -> None:
    chosen = settings(think={"max_latent_steps": 3, "latents": "pause"})
    one, processor = rich_reasoner(chosen, trainable="full"), fresh_processor()
    save_checkpoint(tmp_path / "one", one, processor, None, {})
    assert check_weights(tmp_path / "one").extras["latent.constant_TD"].shape == (3, one.backbone.hidden_size)
    loaded = load_checkpoint(tmp_path / "one").reasoner
    assert torch.equal(loaded.latent.constant_TD, one.latent.constant_TD)
    assert loaded.settings.think.latents == "pause"


def test_all_latents_are_trained_for_every_chain_where_nobody_can_stop() -> None:
    """In use, halting is fixed: a model that was trained on as many latents as a chain has steps would meet others."""
    recipe = load_recipe(
        {
            "name": "x", "init": {"hidden_size": 32}, "trainable": "full",
            "stages": [
                {"name": "all", "tasks": {"short": 1.0}, "latent_steps": "all", "spoken_steps": "bare", "updates": 1},
                {"name": "two", "tasks": {"short": 1.0}, "latent_steps": 2, "updates": 1},
            ],
        }
    )  # fmt: skip
    made = Curriculum(recipe, recipe.data.open(0, recipe.stages), fresh_processor(), ThinkSettings(**AT_ONCE))
    batches = [made.batch(stage) for stage in range(2)]
    counts = [set(one.num_latents.tolist()) for one in batches if isinstance(one, TrainBatch)]
    assert counts[0] == {3} and counts[1] <= {0, 1, 2}
