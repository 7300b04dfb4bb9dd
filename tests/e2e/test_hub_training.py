"""Published data from the check before a run to the evaluation after it; a stopped run goes on with the same draws."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import pytest

from lrkit.errors import ConfigError, DataError
from lrkit.train.recipe import Recipe, load_recipe
from lrkit.train.run import train
from lrkit.train.run_folder import RECIPE_FILE
from lrkit.train.stop_signals import TrainingInterrupted
from tests.commands import lrkit
from tests.hub_files import encoded, write_parquet
from tests.runs import curve

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")

WORD = "Take"
"""The shipped model knows few words."""
COLUMNS = {"question": "question", "answer": "answer", "image": "image", "steps": "steps"}


def rows(number: int) -> list[dict[str, Any]]:
    return [
        {
            "question": WORD,
            "answer": str(n % 3),
            "image": {"bytes": encoded(n), "path": None},
            "steps": [WORD] * (n % 3),
        }
        for n in range(number)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        write_parquet(folder / "train-0.parquet", rows(5))
        write_parquet(folder / "train-1.parquet", rows(4))
        write_parquet(folder / "held.parquet", rows(3))
        yield folder


def recipe(folder: Path, **data: Any) -> Recipe:
    named = {"kind": "hub", "name": f"{folder}/train-*.parquet", "validation": f"{folder}/held.parquet"}
    return load_recipe({
        "name": "published", "init": "tiny", "batch_size": 2, "log_every": 1, "save_every": 2,
        "data": {**named, "columns": COLUMNS, **data},
        "eval": {"samples": 1, "max_new_tokens": 3, "show": 0},
        "stages": [{"name": "say", "updates": 3}, {"name": "think", "updates": 3, "latent_steps": "all"}],
    })  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({}, id="whole", marks=pytest.mark.long),
        pytest.param({"streaming": True, "buffer": 4}, id="stream"),
    ],
)
def test_a_stopped_run_goes_on_with_the_same_losses(files: Path, tmp_path: Path, data: dict[str, Any]) -> None:
    asked = recipe(files, **data)
    whole, parts, more = tmp_path / "whole", tmp_path / "parts", files / "train-2.parquet"
    train(asked, whole, quiet=True)
    for _ in range(2):
        turns = count()
        with pytest.raises(TrainingInterrupted):
            train(asked, parts, quiet=True, resume=True, stop=lambda turns=turns: next(turns) >= 2)
    write_parquet(more, rows(1))
    with pytest.raises(ConfigError, match=r"data: train/train-2.parquet has changed since the run began"):
        train(asked, parts, quiet=True, resume=True)
    more.unlink()
    train(load_recipe(parts / RECIPE_FILE, ["loader={workers: 3, ahead: 1}"]), parts, quiet=True, resume=True)
    assert curve(parts) == curve(whole) and len([r for r in curve(whole) if r["kind"] == "train"]) == 6
    info = json.loads((whole / "stages" / "00-say" / "reasoner.json").read_text())
    assert len(info["provenance"]["data_sha256"]) == 64


def test_the_verbs_check_and_measure_published_data(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.json"
    folder = tmp_path / "bad"
    write_parquet(
        folder / "train-0.parquet", [*rows(2), {**rows(1)[0], "answer": "unheard"}, {**rows(1)[0], "image": None}]
    )
    values = recipe(files).model_dump(mode="json", exclude_unset=True)
    file.with_suffix(".yaml").write_text(json.dumps(values))
    assert lrkit("validate", str(file.with_suffix(".yaml"))) == 0
    assert lrkit("train", str(file.with_suffix(".yaml")), "--dry-run", "-o", str(tmp_path / "run")) == 0
    bad = (f"data.name={folder}/train-0.parquet", "data.validation=null")
    capsys.readouterr()
    assert lrkit("train", str(file.with_suffix(".yaml")), *bad, "--dry-run", "-o", str(tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert "train-0.parquet:3: " in said and "unheard" in said, "words that the model lacks are found before a run"
    assert "train-0.parquet:4: image is null" in " ".join(said.split())
    with pytest.raises(DataError, match=r"train-0.parquet:4: image is null"):
        recipe(folder, validation=None).data.open(0, [])
