"""`lrkit train --dry-run`: everything that can be known without weights, all of it together; and `max_pixels`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lrkit.errors import ConfigError, UserError
from lrkit.resources import find_recipe, resolve_checkpoint
from lrkit.train.checks import check_start, find_problems
from lrkit.train.recipe import Recipe, load_recipe
from lrkit.train.run import train
from lrkit.train.stop_signals import TrainingInterrupted
from tests.published import write_drawn_samples, write_published


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model in the published layout, and samples beside it."""
    folder = tmp_path_factory.mktemp("published")
    write_published(folder / "model")
    write_drawn_samples(folder / "data", count=3)
    return folder


def recipe(folder: Path, *overrides: str, **values: Any) -> Recipe:
    """Lines of the folder's own, on the shipped base."""
    return load_recipe(
        {
            "name": "mine",
            "init": "tiny/base",
            "data": {"kind": "jsonl", "train": str(folder / "lines.jsonl")},
            "stages": [{"name": "say", "updates": 1}],
            **values,
        },
        overrides,
    )


def write_lines(folder: Path, *lines: dict[str, Any]) -> None:
    Image.new("RGB", (64, 32), (9, 9, 9)).save(folder / "good.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:70])
    whole = {"question": "Which room ?", "steps": ["go on"], "answer": "3"}
    (folder / "lines.jsonl").write_text("".join(json.dumps(whole | line) + "\n" for line in lines))


def problems(made: Recipe, folder: Path, resume: bool = False) -> list[str]:
    with pytest.raises(UserError) as caught:
        find_problems(made, folder, resume)
    return str(caught.value).splitlines()


def test_all_problems_are_told_together(tmp_path):
    """A dry run said "nothing wrong" of the picture, and of two faults named one."""
    write_lines(tmp_path, {"image": "good.png"}, {"image": "cut.png"}, {"question": "What zebra ?"}, {"answer": " "})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    shutil.copytree(resolve_checkpoint("tiny/cot"), tmp_path / "cot")
    (tmp_path / "cot" / "tokenizer.json").unlink()
    made = recipe(
        tmp_path,
        "model.routing={depth: 1, layers: [1, 99]}",
        f"data.validation={tmp_path}/nowhere.jsonl",
        f"baselines={{cot: {tmp_path}/cot, direct: {tmp_path}/lost}}",
        "stages.0.lengths=[1, 7]",
        "max_pixels=3",
    )
    told = problems(made, tmp_path / "run")
    for piece in (
        "model.routing.layers: the model has the layers 0 to 3, not 99",
        "lines.jsonl:2: ",
        "lines.jsonl:3: the question holds words that this model's vocabulary lacks (What, zebra)",
        "lines.jsonl:4: answer is empty",
        "nowhere.jsonl: there is no such data file",
        "baselines.cot: ",
        "baselines.direct: ",
        "stage say draws chains of 7 steps",
        "max_pixels is 3",
        "is not empty (it holds thesis.tex)",
    ):
        assert any(piece in line for line in told), (piece, told)


@pytest.mark.parametrize(
    ("removed", "says"),
    [
        ("tokenizer.json", "tokenizer"),
        ("preprocessor_config.json", "preprocessor_config.json"),
        ("config.json", "config.json"),
    ],
)
def test_a_base_that_is_not_whole_is_found(published, tmp_path, removed, says):
    """A base without a tokenizer passed, and the run ended after the weights were loaded."""
    shutil.copytree(published / "model", tmp_path / "model")
    (tmp_path / "model" / removed).unlink()
    write_lines(tmp_path, {})
    told = problems(recipe(tmp_path, f"init={tmp_path}/model"), tmp_path / "run")
    assert any(line.startswith("init: ") and says in line for line in told), told


def test_weights_that_are_cut_off_are_found_without_loading_them(published, tmp_path):
    shutil.copytree(published / "model", tmp_path / "model")
    (shard := next((tmp_path / "model").glob("*.safetensors"))).write_bytes(shard.read_bytes()[:-40])
    write_lines(tmp_path, {})
    told = problems(recipe(tmp_path, f"init={tmp_path}/model"), tmp_path / "run")
    assert len(told) == 1 and shard.name in told[0]


def test_a_sample_longer_than_the_model_is_named(tmp_path):
    write_lines(tmp_path, {}, {"image": "good.png", "steps": ["go on"] * 600}, {"steps": ["go on"]})
    told = problems(recipe(tmp_path), tmp_path / "run")
    assert len(told) == 1 and "lines.jsonl:2: takes " in told[0] and "and the model has 1024" in told[0]


@pytest.mark.parametrize("init", ["tiny/base", "plain"])
def test_what_is_right_passes_and_nothing_is_written(published, tmp_path, init):
    write_lines(tmp_path, {"image": "good.png"}, {"steps": []})
    made = recipe(tmp_path, "baselines={cot: tiny/cot}", trainable="full")
    if init == "plain":
        data = f"data.train={published}/data/samples.jsonl"
        made = recipe(tmp_path, f"init={published / 'model'}", data, "max_pixels=100000")
    before = sorted(tmp_path.rglob("*"))
    find_problems(made, tmp_path / "run", resume=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_adapter_of_another_rank_does_not_hide_what_else_is_wrong(tmp_path):
    write_lines(tmp_path, {"image": "cut.png"})
    shutil.copytree(resolve_checkpoint("tiny/latent"), tmp_path / "latent")
    (tmp_path / "latent" / "preprocessor_config.json").unlink()
    told = problems(recipe(tmp_path, f"init={tmp_path}/latent", "model.lora.rank=3"), tmp_path / "run")
    for piece in ("model.lora asks for 3", "preprocessor_config.json", "cut.png"):
        assert any(piece in line for line in told), (piece, told)


def test_a_resume_with_another_recipe_or_other_data_is_found(tmp_path, monkeypatch):
    write_lines(tmp_path, {}, {})
    made = recipe(tmp_path, trainable="full", save_every=1)
    with pytest.raises(TrainingInterrupted):
        train(made, tmp_path / "run", quiet=True, stop=lambda: True)
    find_problems(made, tmp_path / "run", resume=True)
    assert "holds a run already; add --resume" in problems(made, tmp_path / "run")[0]
    with (tmp_path / "lines.jsonl").open("a") as file:
        file.write("\n")
    assert "data: train has changed" in problems(made, tmp_path / "run", resume=True)[0]
    other = recipe(tmp_path, "optimizer.lr=0.5", trainable="full", save_every=1)
    assert any("optimizer" in line for line in problems(other, tmp_path / "run", resume=True))
    monkeypatch.setitem(sys.modules, "torch", None)  # then recipe.yaml, which is text, is compared
    assert any("optimizer" in line for line in problems(other, tmp_path / "run", resume=True))


def test_a_dry_run_works_without_torch_and_says_what_training_needs(tmp_path):
    write_lines(tmp_path, {"image": "good.png"}, {"image": "cut.png"})
    values = recipe(tmp_path).model_dump(mode="json", exclude_unset=True)
    (tmp_path / "mine.yaml").write_text(json.dumps(values))
    program = (
        "import sys\n"
        "heavy = ('torch', 'transformers', 'peft', 'accelerate', 'tensorboard', 'sklearn')\n"
        "sys.modules.update(dict.fromkeys(heavy))\n"
        "from lrkit.cli.main import main\n"
        "main(['train', *sys.argv[1:], '--dry-run', '-o', 'run'])\n"
    )

    def dry_run(name: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", program, name], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    code, said = dry_run("mine.yaml")
    assert code == 2 and "lines.jsonl:2: " in said and "cut.png" in said and "Traceback" not in said
    code, said = dry_run(str(find_recipe("trail-base")))
    assert code == 0 and 'pip install "lrkit[train]"' in said and "needs the package torch" in said
    assert "not checked: the trails" in said
    assert not (tmp_path / "run").exists()


def test_layers_that_the_model_lacks_are_found_before_weights_are_loaded():
    made = load_recipe(find_recipe("smoke"), ["model.routing.layers=[0, 2]"])
    with pytest.raises(ConfigError, match="the model has the layers 0 to 1, not 2"):
        check_start(made)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("token_weights={'(': 2.0}", "token_weights: '(' is no regular expression"),
        ("stages.0.readouts={faces: {classes: 3}}", "samples have no label 'faces'; known: token_digits, token_rooms"),
        ("stages.0.readouts={token_rooms: {classes: 4}}", "has 4 classes for labels from 0 to 9"),
        (f"stages.0.name={'x' * 200}", "at most 100 characters"),
        ("max_pixels=0", "greater than or equal to 1"),
        ("save_every=0", "greater than or equal to 1"),
        ("data.drawing.train_noise=[0.5, 0.1]", "train_noise"),
        ("data.drawing.split_seed=-1", "split_seed"),
    ],
)
def test_values_that_no_run_can_have_are_refused_with_the_recipe(override, says):
    with pytest.raises(ConfigError) as caught:
        load_recipe(find_recipe("smoke"), [override])
    assert says in str(caught.value)
