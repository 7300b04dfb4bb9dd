"""A second family takes the road of the first: nothing outside its folder knows it.

The fake family of tests/fake_family is trained, stopped, resumed, asked, validated and profiled by the command line.
"""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from lrkit import Reasoner
from lrkit.cli.main import main
from lrkit.train import keeper
from tests.fake_family import NAME, installed
from tests.fake_family.folder import write_base, write_data
from tests.fake_family.geometry import ROW
from tests.runs import curve

pytest.importorskip("sklearn")

RECIPE = """
name: rowwise
description: the fake family
init: base
trainable: lora
model:
  think: {max_latent_steps: 2, halting: fixed}
  replay: {num_tokens: 4}
  distill: {weight: 1.0, window: 2}
  routing: {depth: 1, alpha: 4, positions: rearrange}
  lora: {rank: 4, alpha: 8.0}
data: {kind: jsonl, train: data/data.jsonl, validation: data/data.jsonl}
batch_size: 4
eval: {every: 0, samples: 2, batch_size: 2, max_new_tokens: 3, show: 0}
save_every: 1
log_every: 1
stages:
  - {name: say, latent_steps: 0, updates: 2}
  - {name: think, latent_steps: all, updates: 3}
"""


def lrkit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A working folder with the family's base, data and a trained run."""
    home = tmp_path_factory.mktemp("rowwise")
    with installed(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        write_base(home / "base")
        write_data(home / "data")
        (home / "mine.yaml").write_text(RECIPE, encoding="utf-8")
        assert lrkit("train", "mine.yaml", "-o", "run") == 0
        yield home


def updates(run: str) -> list[dict[str, Any]]:
    """What was logged of each update, but the time it took."""
    return [record for record in curve(Path(run)) if record["kind"] == "train"]


def test_its_files_are_checked_before_and_after_training(home: Path) -> None:
    assert lrkit("train", "mine.yaml", "-o", "other", "--dry-run") == 0
    for what in ("base", "run", "mine.yaml"):
        assert lrkit("validate", what) == 0
    assert lrkit("validate", "data/data.jsonl", "--checkpoint", "base") == 0


def test_training_distils_and_a_resumed_run_goes_on_as_if_never_stopped(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(one["distill"] > 0 for one in updates("run")[2:])
    write, seen = keeper.save_state, list[object]()

    def stop_in_the_second_stage(*given: Any) -> None:
        write(*given)
        seen.append(given)
        if len(seen) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(keeper, "save_state", stop_in_the_second_stage)
    assert lrkit("train", "mine.yaml", "-o", "again") == 130
    monkeypatch.setattr(keeper, "save_state", write)
    assert lrkit("train", "mine.yaml", "-o", "again", "--resume") == 0
    assert updates("again") == updates("run")


def test_it_answers_with_regions_in_the_users_own_picture(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--max-new-tokens", "3", "--image", "data/1.png", "Which colour ?")
    assert lrkit("ask", "run", *asked) == 0
    assert capsys.readouterr().out.strip()
    reasoner = Reasoner.from_checkpoint(home / "run")
    prompt = reasoner.processor.encode_prompt(["data/1.png", "data/0.png"], "Which colour ?")
    assert prompt.grids == [(4, 6), (3, 5)]
    row = reasoner.processor.tokenizer.token_to_id(ROW)
    assert row is not None and prompt.ids.count(row) == 3 + 2
    assert prompt.ids.count(reasoner.processor.image_id) == 24 + 15
    answer = reasoner.ask(["data/1.png", "data/0.png"], "Which colour ?", max_new_tokens=3)
    assert answer.latent_steps == 2 and answer.replayed_tokens == 8
    for region in (region for step in answer.regions for region in step):
        left, top, right, bottom = region.box
        wide, high = ((48, 32), (40, 24))[region.image]
        assert (right - left, bottom - top) == (8, 8) and 0 <= left < right <= wide and 0 <= top < bottom <= high


def test_a_marker_in_a_question_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("ask", "run", "--image", "data/1.png", f"Which {ROW} ?") == 2
    assert ROW in capsys.readouterr().err


def test_it_is_profiled(home: Path) -> None:
    given = ("max_new_tokens=3", "repeats=1", "phase_samples=1")
    assert lrkit("profile", "run", "--suite", "smoke", "--data", "data/data.jsonl", "-o", "profile", *given) == 0
    report = json.loads(Path("profile/report.json").read_text(encoding="utf-8"))
    assert "latent" in json.dumps(report["runs"]) and count_of_the_towers_weights() > 0


def count_of_the_towers_weights() -> float:
    """What a ceiling is computed from."""
    counts = Reasoner.from_checkpoint("run").engine.counts()
    assert counts.merge_area == 1 and counts.attention is not None
    assert counts.attention.vision_width == 24 and counts.weights["merger"] == 24 * 32
    return counts.weights["vision"]


def test_it_is_trained_from_random_weights_on_the_embedded_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its trail boards have a token a room, as those of the first family, so that read-outs of the tower fit."""
    assert lrkit("train", "smoke", "-o", "fresh", f"init.family={NAME}", "eval.samples=2") == 0
    assert lrkit("validate", "fresh") == 0
    assert json.loads(Path("fresh/stages/02-think/config.json").read_text(encoding="utf-8"))["model_type"] == NAME
    assert lrkit("train", "smoke", "-o", "other", "init.family=rowvise") == 2
    said = capsys.readouterr().err
    assert "unknown backbone 'rowvise'; known: " in said and "qwen2_vl, " in said and "did you mean 'rowwise'" in said


def test_another_family_than_the_table_has_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = home / "base" / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    other = home / "other-family"
    other.mkdir()
    for file in (home / "base").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text(json.dumps({**values, "model_type": "row_wise"}), encoding="utf-8")
    assert lrkit("validate", str(other)) == 2
    said = capsys.readouterr().err
    assert "unknown backbone 'row_wise'" in said and NAME in said
