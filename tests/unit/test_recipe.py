"""Recipes: every problem in one message, settings laid over a checkpoint's, and all shipped recipes sound."""

import pytest

from lrkit.contract.settings import ReasonerSettings, ReplaySettings, RoutingSettings
from lrkit.errors import ConfigError
from lrkit.resources import find_recipe, list_resources
from lrkit.train.recipe import FreshBackbone, Recipe, as_written, load_recipe, overlay

pytest.importorskip("yaml")


def values(**changes):
    base = {
        "name": "test",
        "init": {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 1},
        "trainable": "full",
        "stages": [{"name": "say", "updates": 2}],
    }
    return {**base, **changes}


def problems(**changes) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(values(**changes))
    return str(caught.value)


def test_every_shipped_recipe_is_sound():
    recipes = [load_recipe(resource.path) for resource in list_resources("recipe") if _is_recipe(resource.path)]
    names = {"trail-base", "trail-cot", "trail-latent", "trail-direct", "trail-follow-up", "smoke", "m3cot-style"}
    assert names <= {recipe.name for recipe in recipes}
    assert all(recipe.description for recipe in recipes)


def test_the_paper_values_are_in_the_paper_recipe():
    (path,) = [resource.path for resource in list_resources("recipe") if resource.name == "m3cot-style"]
    recipe = load_recipe(path)
    model, optimizer = recipe.model, recipe.optimizer
    assert (model.think.max_latent_steps, model.replay.num_tokens, model.distill.window) == (4, 32, 3)
    assert (model.routing.depth, model.routing.alpha, model.lora.rank, model.lora.alpha) == (1, 32, 64, 16.0)
    assert (optimizer.kind, optimizer.lr, optimizer.weight_decay, optimizer.clip) == ("adamw", 4e-5, 0.01, 0.7)
    assert sum(stage.epochs or 0 for stage in recipe.stages if stage.latent_steps != 0) == 16


def test_direct_recipe_is_the_latent_recipe_minus_the_steps():
    paths = {resource.name: resource.path for resource in list_resources("recipe")}
    latent, direct = load_recipe(paths["trail-latent"]), load_recipe(paths["trail-direct"])
    assert sum(stage.updates or 0 for stage in latent.stages) == sum(stage.updates or 0 for stage in direct.stages)
    assert all(stage.mode == "direct" for stage in direct.stages)
    for key in ("init", "trainable", "model", "data", "batch_size", "token_weights"):
        assert getattr(latent, key) == getattr(direct, key), key


def test_problems_of_all_stages_are_reported_together():
    text = problems(
        trainable="lora",
        stages=[
            {"name": "look", "objective": "vision", "readouts": {"token_digits": {"classes": 10}}, "updates": 1},
            {"name": "say", "updates": 1, "rehearsal_fraction": 0.5},
            {"name": "say", "epochs": 2.0},
            {"name": "think", "updates": 1, "until": {"accuracy": 0.9}, "lengths": [12]},
        ],
    )
    for piece in (
        "trainable: lora on random weights",
        "stages.0 (look): objective vision trains the vision tower",
        "stages.1 (say): rehearsal_fraction is set but no earlier stage reasons",
        "stages.2 (say): the name is taken",
        "stages.2 (say): epochs count lines of a file",
        "stages.3 (think): until needs validation during the stage",
        "stages.3 (think): lengths [12]",
    ):
        assert piece in text, piece


def test_wrong_values_and_wrong_combinations_are_reported_together():
    text = problems(trainable="lora", optimizer={"lr": -1.0}, batchsize=3)
    assert "optimizer.lr: got -1.0" in text
    assert "batchsize: unknown key" in text
    assert "trainable: lora on random weights" in text


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({}, "needs a budget"),
        ({"updates": 1, "epochs": 1.0}, "needs a budget"),
        ({"updates": 1, "lengths": [1, 2], "length_weights": [1.0]}, "length_weights has 1 values for 2 lengths"),
        ({"updates": 1, "lengths": [1], "length_weights": [0.0]}, "length_weights are all 0"),
        ({"updates": 1, "objective": "vision"}, "objective vision needs readouts"),
        ({"updates": 1, "readouts": {"token_digits": {"classes": 10}}}, "readouts belong to objective vision"),
        ({"updates": 1, "rehearse": ["x"]}, "rehearsal_fraction is 0"),
        ({"updates": 1, "tasks": {"read": 0.0}}, "tasks have weight 0"),
        ({"updates": 1, "latent_steps": 2, "spoken_steps": "bare"}, "bare leaves no step to be spoken"),
        ({"updates": 0}, "nothing is trained"),
    ],
)
def test_a_stage_says_what_is_wrong_with_it(stage, says):
    assert says in problems(stages=[{"name": "one", **stage}])


def test_a_fresh_backbone_says_which_sizes_do_not_go_together():
    text = problems(init={"hidden_size": 36, "num_heads": 8, "num_kv_heads": 3, "vision_width": 20})
    assert "hidden_size 36 over num_heads 8" in text
    assert "num_heads 8 must be a multiple of num_kv_heads 3" in text
    assert "vision_width 20 over vision_heads 4" in text


def test_rehearsing_a_stage_that_comes_later_is_refused():
    stages = [
        {"name": "one", "updates": 1},
        {"name": "two", "updates": 1, "rehearsal_fraction": 0.2, "rehearse": ["three"]},
        {"name": "three", "updates": 1},
    ]
    assert "rehearses 'three'; allowed are earlier stages that reason: one" in problems(stages=stages)


def test_overlay_replaces_only_what_is_given():
    base = ReasonerSettings(replay=ReplaySettings(num_tokens=4), routing=RoutingSettings(depth=1, alpha=8))
    given = load_recipe(values(model={"routing": {"alpha": 16}})).model
    merged = overlay(base, given)
    assert (merged.replay.num_tokens, merged.routing.depth, merged.routing.alpha) == (4, 1, 16)


def test_overlay_keeps_a_default_that_is_given_explicitly():
    base = ReasonerSettings(routing=RoutingSettings(depth=2))
    assert overlay(base, load_recipe(values(model={"routing": {"depth": 0}})).model).routing.depth == 0


def test_a_recipe_as_written_is_read_back_with_the_same_explicit_values():
    recipe = load_recipe(values(model={"routing": {"depth": 0}}), ["stages.0.optimizer.lr=1e-2"])
    again = load_recipe(as_written(recipe))
    assert again.model_dump() == recipe.model_dump()
    assert as_written(again) == as_written(recipe)
    assert again.model.model_dump(exclude_unset=True) == {"routing": {"depth": 0}}


def test_modes_follow_from_what_a_stage_supervises():
    recipe = load_recipe(
        values(
            stages=[
                {"name": "a", "updates": 1},
                {"name": "b", "updates": 1, "latent_steps": 2},
                {"name": "c", "updates": 1, "spoken_steps": "none"},
                {"name": "d", "updates": 1, "latent_steps": "all"},
            ]
        )
    )
    assert [stage.mode for stage in recipe.stages] == ["cot", "latent", "direct", "latent"]
    assert isinstance(recipe, Recipe) and isinstance(recipe.init, FreshBackbone)


def _is_recipe(path) -> bool:
    return "kind: sweep" not in path.read_text()


@pytest.mark.parametrize("change", ["batch_size", "accumulate", "eval.batch_size", "stages.0.batch_size"])
def test_more_samples_than_any_machine_holds_are_refused(change: str) -> None:
    """batch_size=9999999999 passed --dry-run, and the run could not even be stopped while it drew the batch."""
    with pytest.raises(ConfigError, match=rf"{change}: got 9999999999; .*65536"):
        load_recipe(find_recipe("smoke"), [f"{change}=9999999999"])
