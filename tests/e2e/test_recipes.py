"""Every shipped recipe with its own values: two updates a stage, then eval, ask, an int4 export, and the bundle asked.

Only what decides how long it takes is made smaller: updates, samples, batches. Where a recipe starts from a checkpoint
of the hub, a tiny one in the published layout stands for it; tiny/latent does where one is made by hand. The paper's
recipe had never run: bfloat16, LoRA and routing together ended its first update.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lrkit import Reasoner
from lrkit.data.hub.hub_data import HubData
from lrkit.data.jsonl_source import JsonlData
from lrkit.data.ledger.ledger_samples import ledger_set
from lrkit.data.ledger.ledger_source import LedgerData
from lrkit.data.trail import trail_set
from lrkit.pretrained import HUB_PREFIX
from lrkit.resources import find_recipe, list_resources
from lrkit.train.metrics import read_metrics
from lrkit.train.recipe import Recipe, load_recipe
from tests.commands import lrkit
from tests.ledger_base import write_ledger_base
from tests.published import write_drawn_samples, write_published

pytest.importorskip("sklearn")

NAMES = [
    resource.name
    for resource in list_resources("recipe")
    if not isinstance(load_recipe(resource.path).data, HubData)  # tests/e2e/test_paper_recipes.py trains these
]
WHOLE = ("m3cot-style",)
"""Run to the end by `make long`: the paper's values on a published layout."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published") / "base")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawn_samples(tmp_path_factory.mktemp("drawn"), count=6)


@pytest.fixture(scope="module", autouse=True)
def ledger_base(published: Path) -> Path:
    return write_ledger_base(published.parent / "ledger")


def smaller(recipe: Recipe, published: Path, lines: Path) -> list[str]:
    """Overrides that make a recipe quick, and nothing else."""
    jsonl = isinstance(recipe.data, JsonlData)
    changes = ["batch_size=2", f"accumulate={min(recipe.accumulate, 2)}", "log_every=1"]
    changes += ["eval.every=0", "eval.samples=1", "eval.max_new_tokens=4"]
    if jsonl:
        changes += [f"data.train={lines}", f"data.validation={lines}"]
    if isinstance(recipe.init, str) and recipe.init.startswith(HUB_PREFIX):
        changes.append(f"init={published}")
    if isinstance(recipe.init, str) and recipe.init.startswith(("runs/", "bases/")):  # made by hand before
        changes.append(f"init={published.parent / 'ledger' if isinstance(recipe.data, LedgerData) else 'tiny/latent'}")
    if any(where.startswith("runs/") for where in recipe.baselines.values()):
        changes.append("baselines={}")
    for index, stage in enumerate(recipe.stages):
        if stage.epochs is not None:
            changes.append(f"stages.{index}.epochs=1.0")
        elif stage.updates:
            changes.append(f"stages.{index}.updates=2")
        if stage.batch_size is not None:
            changes.append(f"stages.{index}.batch_size=2")
    return changes


def asked(recipe: Recipe, lines: Path, folder: Path) -> tuple[Path, str, str]:
    """A picture, a question about it, and what `--data` takes."""
    if isinstance(recipe.data, JsonlData):
        first: dict[str, Any] = json.loads(lines.read_text().splitlines()[0])
        return lines.parent / first["image"], first["question"], str(lines)
    ledger = isinstance(recipe.data, LedgerData)
    sample = (ledger_set("main", "val", 1, lengths=(2,)) if ledger else trail_set("main", "val", 1, hops=(2,)))[0]
    board: Any = sample.images[0]
    board.save(folder / "board.png")
    return folder / "board.png", sample.question, "ledger:main" if ledger else "trail:main"


def train(name: str, folder: Path, published: Path, lines: Path, *more: str) -> Recipe:
    """Trains a smaller recipe into `folder`/run; checks its losses, weights and number types."""
    recipe = load_recipe(find_recipe(name))
    changes = [*smaller(recipe, published, lines), *more]
    assert lrkit("train", name, *changes, "-o", folder / "run") == 0
    updates = [line for line in read_metrics(folder / "run") if line["kind"] == "train"]
    assert {line["stage"] for line in updates} == {stage.name for stage in recipe.stages if stage.updates != 0}
    assert all(torch.isfinite(torch.tensor([line["loss"], line["grad_norm"]])).all() for line in updates)
    run = json.loads((folder / "run" / "run.json").read_text())
    assert run["done"] and all(stage["updates"] >= 2 for stage in run["stages"])
    info = json.loads((folder / "run" / run["checkpoint"] / "reasoner.json").read_text())
    made = load_recipe(find_recipe(name), changes)
    half = made.precision == "bfloat16" and made.trainable == "lora"
    assert info["provenance"]["numbers"]["backbone"] == ("bfloat16" if half else "float32")
    if recipe.init != made.init:  # no settings but the recipe's own
        assert info["settings"] == recipe.model.model_dump(mode="json")
    return recipe


def use(recipe: Recipe, folder: Path, lines: Path) -> None:
    """Evaluates and asks what was trained, with latent steps whether it learned to take them or not."""
    picture, question, data = asked(recipe, lines, folder)
    run, few = folder / "run", ("--samples", 2, "--max-new-tokens", 4)
    assert lrkit("eval", run, "--data", data, *few, "--latency-samples", 1, "--json", folder / "eval.json") == 0
    report = json.loads((folder / "eval.json").read_text())
    assert set(report["modes"]) == {"latent", "cot", "direct"}
    assert lrkit("ask", run, "--image", picture, question, "--max-new-tokens", 4, "--json", folder / "answer.json") == 0
    assert json.loads((folder / "answer.json").read_text())["dtype"] == report["runs_on"]["dtype"]
    reasoner = Reasoner.open(run)
    answer = reasoner.ask(picture, question, max_new_tokens=3, max_latent_steps=2, halting="fixed")
    settings = load_recipe(find_recipe(recipe.name)).model
    assert answer.latent_steps == 2
    assert (answer.replayed_tokens > 0) == (settings.replay.num_tokens > 0)
    assert (sum(answer.depths) > 0) == (settings.routing.depth > 0)


def export_and_ask(recipe: Recipe, folder: Path, lines: Path) -> None:
    picture, question, data = asked(recipe, lines, folder)
    bundle = folder / "bundle"
    small = ("limits.max_new_tokens=8",)
    assert (
        lrkit(
            "export",
            folder / "run",
            "--int4",
            "--no-baselines",
            "-o",
            bundle,
            "--data",
            data,
            "--samples",
            2,
            "--allow-unproven",
            *small,
        )
        == 0
    )
    assert (
        lrkit("ask", bundle, "--image", picture, question, "--max-new-tokens", 4, "--json", folder / "bundle.json") == 0
    )
    assert json.loads((folder / "bundle.json").read_text())["dtype"] == "int4"


def test_every_shipped_recipe_is_here() -> None:
    assert set(WHOLE) <= set(NAMES) and len(NAMES) >= 6


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_and_answers(name: str, tmp_path: Path, published: Path, lines: Path) -> None:
    recipe = train(name, tmp_path, published, lines)
    use(recipe, tmp_path, lines)


@pytest.mark.long
@pytest.mark.parametrize("name", WHOLE)
def test_the_papers_recipe_becomes_a_bundle(name: str, tmp_path: Path, published: Path, lines: Path) -> None:
    export_and_ask(train(name, tmp_path, published, lines), tmp_path, lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in WHOLE])
def test_a_recipe_becomes_a_bundle(name: str, tmp_path: Path, published: Path, lines: Path) -> None:
    export_and_ask(train(name, tmp_path, published, lines), tmp_path, lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(load_recipe(find_recipe(name)).init, str)])
def test_a_recipe_starts_from_the_published_layout(name: str, tmp_path: Path, published: Path, lines: Path) -> None:
    """Where it starts from a shipped checkpoint otherwise; in bfloat16 too."""
    recipe = train(name, tmp_path, published, lines, f"init={published}", "precision=bfloat16")
    use(recipe, tmp_path, lines)
    export_and_ask(recipe, tmp_path, lines)
