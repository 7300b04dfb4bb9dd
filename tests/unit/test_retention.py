"""Which checkpoints of a run stay: the last stages', the best of each stage, and never half of one."""

import json
from pathlib import Path
from typing import Any

import pytest

from lrkit.errors import ConfigError
from lrkit.resources import find_recipe, resolve_checkpoint
from lrkit.train.recipe import load_recipe
from lrkit.train.retention import best_name, prune, ranked
from lrkit.train.run import train
from lrkit.train.run_report import read_run


def entry(updates: int, accuracy: float, stage: str = "say") -> dict[str, Any]:
    return {"updates": updates, "accuracy": accuracy, "checkpoint": best_name(0, stage, updates)}


def test_the_best_are_those_that_are_right_more_often_and_of_equal_ones_the_earlier() -> None:
    validations = [entry(2, 0.5), entry(4, 0.75), entry(6, 0.5), entry(8, 0.75)]
    assert [one["updates"] for one in ranked(validations, 3)] == [4, 8, 2]
    assert ranked(validations, 0) == []


def checkpoint(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "reasoner.json").write_text("{}")


def test_what_is_named_stays_and_what_others_put_there_stays_too(tmp_path: Path) -> None:
    finished = [
        {"checkpoint": f"stages/{number:02d}-{name}", "best": [entry(2, 0.5, name)]}
        for number, name in enumerate(("look", "say", "think"))
    ]
    running = [entry(9, 0.5, "run")]
    mine = ["best/mine", "best/00-mine", "stages/99-other"]
    for one in finished:
        checkpoint(tmp_path, one["checkpoint"])
    bests = [one["checkpoint"] for one in [*running, *(part for stage in finished for part in stage["best"])]]
    for name in [*bests, "best/02-think-000001", *mine]:
        checkpoint(tmp_path, name)
    prune(tmp_path, finished, running, 2)
    left = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("reasoner.json")}
    assert left == {"stages/01-say", "stages/02-think", "best/00-say-000002", "best/00-think-000002",
                    "best/00-run-000009", *mine}  # fmt: skip
    assert not list(tmp_path.rglob(".*"))
    prune(tmp_path, finished, running, 2)  # a second time finds nothing to do


def test_keeping_the_best_without_validation_is_refused() -> None:
    for change in ("eval.every=0", "eval.samples=0"):
        with pytest.raises(ConfigError, match=r"keep_best: 1 needs validation during the stages; set eval\.every"):
            load_recipe(find_recipe("smoke"), ["keep_best=1", change])


@pytest.mark.usefixtures("one_thread")
def test_a_run_keeps_its_last_stage_and_the_best_of_it(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    changes = ["keep_last=1", "keep_best=2", "eval.every=1", "eval.samples=2", "stages.0.updates=3", "eval.show=0"]
    changes += ["stages.1.updates=1", "stages.2.updates=4"]
    recipe = load_recipe(find_recipe("smoke"), changes)
    train(recipe, tmp_path / "run", quiet=True)
    report = read_run(tmp_path / "run")
    assert [stage.get("removed", False) for stage in report["stages"]] == [True, True, False]
    best = report["stages"][-1]["best"]
    assert len(best) == 2 and best[0]["accuracy"] >= best[1]["accuracy"]
    kept = {one["checkpoint"] for one in best} | {"stages/02-think"}
    found = {str(path.parent.relative_to(tmp_path / "run")) for path in tmp_path.rglob("reasoner.json")}
    assert found == kept
    for one in best:
        folder = tmp_path / "run" / one["checkpoint"]
        assert resolve_checkpoint(folder) == folder
        assert json.loads((folder / "reasoner.json").read_text())["stage"]["updates"] == one["updates"]
    assert resolve_checkpoint(tmp_path / "run") == tmp_path / "run" / "stages" / "02-think"
    # They may differ when a run is resumed: nothing of what is learned depends on them.
    more = load_recipe(find_recipe("smoke"), [*changes, "keep_best=0"])
    assert train(more, tmp_path / "run", resume=True, quiet=True) == tmp_path / "run" / "stages" / "02-think"
