"""A stranger adds a data set: one file (tests/toy_data.py) and one row, and what reads data takes it."""

import json
from pathlib import Path

import pytest
import yaml

from lrkit.cli.main import main
from lrkit.data import sources
from lrkit.data.sources import load_samples
from lrkit.errors import ConfigError, DataError, LrkitError
from lrkit.registry import Registry
from lrkit.train.recipe import as_written, load_recipe

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
         "vision_depth": 1, "vision_width": 16, "vision_heads": 2}  # fmt: skip
RECIPE = {
    "name": "toy", "init": SMALL, "trainable": "full", "data": {"kind": "toy", "count": 4}, "batch_size": 2,
    "log_every": 1, "eval": {"samples": 2, "max_new_tokens": 4, "show": 0},
    "stages": [{"name": "say", "updates": 2, "lengths": [1]}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {**sources.SOURCES.rows, "toy": "tests.toy_data:ToyData"}
    monkeypatch.setattr(sources, "SOURCES", Registry("data set", rows))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code if isinstance(left.value.code, int) else 0


def test_it_is_validated_trained_from_and_evaluated_on(tmp_path: Path) -> None:
    recipe, folder, report = tmp_path / "toy.yaml", tmp_path / "run", tmp_path / "eval.json"
    recipe.write_text(yaml.safe_dump(RECIPE))
    assert run("validate", recipe) == 0
    assert run("train", recipe, "-o", folder, "--dry-run", "stages.0.lengths=[3]") == 2, "before weights load"
    assert run("train", recipe, "-o", folder) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if line["kind"] == "train"] == [1, 2]
    info = json.loads((folder / "stages" / "00-say" / "reasoner.json").read_text())
    assert info["provenance"]["data_sha256"] == "toy 4 0"
    assert run("train", recipe, "-o", folder, "--resume") == 0, "the run's own recipe reads back as the same"
    asked = ("--data", "toy:colors", "--samples", 2, "--modes", "cot", "--latency-samples", 0, "--max-new-tokens", 3)
    assert run("eval", folder, *asked, "--json", report) == 0
    assert json.loads(report.read_text())["sets"]["toy:colors"]["modes"]["cot"]["samples"] == 2


def test_what_is_wrong_with_it_is_one_sentence() -> None:
    for data, said in (
        ({"kind": "toy", "conut": 3}, "data.conut: unknown key; allowed: boards, .*did you mean 'count'"),
        ({"kind": "toy", "count": 0}, r"data\.count: got 0; input should be greater than or equal to 1"),
        ({"kind": "tois"}, "kind must be one of trail, jsonl, .*hub, toy"),
        ({"count": 3}, "data: got .*unable to extract tag using discriminator 'kind'"),
        (5, "data: got 5; "),
        ({"kind": "hub", "name": "a/b", "columns": "gqa", "id": 1}, r"data\.id: unknown key; allowed: .*columns"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            load_recipe({**RECIPE, "data": data})
        assert len(str(caught.value).splitlines()) <= 2
    with pytest.raises(ConfigError, match="tasks, boards and objective vision need data that lrkit draws"):
        load_recipe(RECIPE, ["stages.0.tasks={read: 1.0}"])
    recipe = load_recipe(RECIPE, ["stages.0.lengths=[3]"])
    with pytest.raises(DataError, match=r"stage say draws chains of 3 steps, but toy:colors has only lengths \[1\]"):
        recipe.data.open(0, recipe.stages)
    assert as_written(recipe)["data"] == {"kind": "toy", "count": 4}


def test_names_are_looked_up_in_the_table() -> None:
    assert [sample.id for sample in load_samples("toy:colors", 2)] == ["test-0", "test-1"]
    for name, said in (
        ("toy:colours", "unknown sample set 'toy:colours'; known: toy:colors"),
        ("hub:org/name", "'hub:org/name' names no data set; write hub:NAME#COLUMNS or hub:NAME#COLUMNS/SPLIT"),
        ("nowhere.jsonl", "nowhere.jsonl is no file; give a JSONL file or one of trail:main, .*toy:colors"),
        ("jsonl:x", "jsonl:x is no file; give a JSONL file or one of"),
    ):
        with pytest.raises(LrkitError, match=said):
            load_samples(name, 1)
