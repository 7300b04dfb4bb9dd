"""The paper's recipes for published data sets: each loads, has a plan for each of the paper's models, and trains a
few updates of a tiny model in the published layout, on rows in the published schema, in bfloat16 with routing.
"""

import json
from pathlib import Path

import pytest

from lrkit.data.hub.hub_data import HubData
from lrkit.resources import find_recipe
from lrkit.train.metrics import read_metrics
from lrkit.train.plan.opened import shapes_of_hub
from lrkit.train.plan.plan import plan_training
from lrkit.train.recipe import load_recipe
from tests.commands import lrkit
from tests.hub_files import WRITERS
from tests.published import write_published

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")

SETS = ("m3cot", "scienceqa", "gqa", "onethinker")
MODELS = {
    "Qwen/Qwen2-VL-2B-Instruct": ["model.distill.weight=1.0"],
    "Qwen/Qwen2-VL-7B-Instruct": [],
    "Qwen/Qwen2.5-VL-3B-Instruct": ["model.distill.weight=1.0"],
    "Qwen/Qwen2.5-VL-7B-Instruct": [],
    "facebook/chameleon-7b": ["max_pixels=null"],
}
"""Hub id -> what a recipe's head says to change for it."""


@pytest.mark.parametrize("name", SETS)
def test_a_recipe_has_the_papers_values(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe.data, HubData) and recipe.data.columns == name and recipe.precision == "bfloat16"
    assert recipe.batch_size * recipe.accumulate == 8 * 16 and recipe.optimizer.lr == 4e-5
    assert (recipe.model.lora.rank, recipe.model.replay.num_tokens, recipe.model.think.max_latent_steps) == (64, 32, 4)
    latent = [stage for stage in recipe.stages if stage.latent_steps != 0]
    assert sum(stage.epochs or 0 for stage in latent) == 16
    head = find_recipe(name).read_text()
    assert "NOBODY HAS RUN THIS AT ITS FULL SIZE" in head
    for model, changes in MODELS.items():
        command = " ".join([f"lrkit train {name} init=hub:{model}", *changes])
        assert command in head or recipe.init == f"hub:{model}"


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_a_recipe_has_a_plan_for_each_model(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("m3cot", "scienceqa"):
        recipe = load_recipe(name, [f"init=hub:{model}", *MODELS[model]])
        report = plan_training(recipe, "h100-sxm", devices=16)
        assert shapes_of_hub()[model] in report["model"]["from"] and report["memory"]["total"] > 2e9
        assert report["assumed"]["data"]["samples"] > 5000 and report["total"]["sec"][0] > 60


@pytest.mark.long
@pytest.mark.parametrize("name", SETS)
def test_a_recipe_trains_on_rows_in_the_published_schema(name: str, tmp_path: Path) -> None:
    base, rows = write_published(tmp_path / "base"), WRITERS[name](tmp_path / "rows")
    changes = [f"init={base}", f"data.name={rows}", "data.pictures=null", "data.validation=null", "batch_size=2"]
    changes += ["accumulate=1", "log_every=1"]
    epochs = [f"stages.{index}.epochs=0.5" for index in range(5)]
    assert lrkit("train", name, *changes, *epochs, "--plan", "--json", tmp_path / "plan.json") == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["assumed"]["data"] is None, "rows that are here are drawn"
    assert lrkit("train", name, *changes, *epochs, "-o", tmp_path / "run") == 0
    updates = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert [line["stage"] for line in updates].count("latent-4") >= 1 and all(line["loss"] > 0 for line in updates)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    made = json.loads((tmp_path / "run" / run["checkpoint"] / "reasoner.json").read_text())
    assert made["provenance"]["numbers"]["backbone"] == "bfloat16" and made["settings"]["routing"]["depth"] == 1
    assert [stage["updates"] for stage in plan["stages"]] == [stage["updates"] for stage in run["stages"]]
