"""`lrkit train` through the command line: a run, Ctrl-C and --resume, and recipes that cannot be run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lrkit.train.fresh import fresh_backbone, fresh_processor
from lrkit.train.recipe import FreshBackbone
from tests.commands import lrkit
from tests.runs import PACE
from tests.waiting import until

pytest.importorskip("sklearn")

# Long enough to be interrupted, short enough to wait for.
LONGER = ["stages.0.updates=8", "stages.1.updates=40", "stages.2.updates=6", "eval.every=20"]


def records(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in PACE} for line in lines]


def test_train_writes_checkpoints_metrics_and_a_report(tmp_path, capsys):
    folder, report = tmp_path / "run", tmp_path / "report.json"
    assert lrkit("train", "smoke", "-o", str(folder), "--json", str(report), "eval.show=1") == 0
    made = json.loads(report.read_text())
    assert made["done"] and made["updates"] == 14 and made["checkpoint"] == "stages/02-think"
    assert [stage["name"] for stage in made["stages"]] == ["look", "say", "think"]
    shown = capsys.readouterr().err
    for piece in ("stage 2/3 say", "asked:", "target:", "says:"):
        assert piece in shown
    trained = [record for record in records(folder) if record["kind"] == "train"]
    assert [record["update"] for record in trained] == list(range(1, 15))
    assert list(folder.glob("tensorboard/events.out.tfevents.*"))
    for stage in ("00-look", "01-say", "02-think"):
        info = json.loads((folder / "stages" / stage / "reasoner.json").read_text())
        provenance = info["provenance"]
        assert provenance["recipe"]["name"] == "smoke" and provenance["seed"] == 0
        known = {"lrkit", "git_commit", "git_dirty", "packages", "data_sha256", "device", "wall_time_sec"}
        assert known <= set(provenance)
    # What was trained is a checkpoint like any other: the run's folder stands for its last one.
    assert lrkit("validate", str(folder)) == 0


def test_the_written_recipe_gives_the_same_run(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert lrkit("train", "smoke", "-o", str(first), "seed=3", "stages.2.updates=2") == 0
    assert lrkit("train", str(first / "recipe.yaml"), "-o", str(second)) == 0
    assert records(first) == records(second)


def test_ctrl_c_saves_and_resume_gives_the_uninterrupted_losses(tmp_path, one_thread):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # One thread everywhere, so that sums are added in one order; a process of its own for what a real signal stops.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", "from lrkit.cli.main import main; main()", "train", "smoke", *LONGER, "-o"]
    interrupted = subprocess.Popen([*program, str(parts)], env=environment, stderr=subprocess.PIPE, text=True)
    wait_for_lines(parts / "metrics.jsonl", 15, interrupted)
    interrupted.send_signal(signal.SIGINT)
    said = interrupted.communicate(timeout=120)[1]
    assert interrupted.returncode == 130, said
    assert "with --resume goes on from here" in said and "Traceback" not in said
    assert lrkit("train", "smoke", *LONGER, "-o", str(whole)) == 0
    assert len(records(parts)) < len(records(whole))
    assert lrkit("train", "smoke", *LONGER, "-o", str(parts), "--resume") == 0
    assert records(parts) == records(whole)
    assert {path.name for path in (parts / "stages").iterdir()} == {"00-look", "01-say", "02-think"}


def wait_for_lines(path: Path, count: int, process: "subprocess.Popen[str]") -> None:
    until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, lambda: process.poll() is None)


def test_a_bad_recipe_is_told_whole_with_exit_code_2_and_nothing_is_written(tmp_path, capsys):
    folder = tmp_path / "run"
    overrides = ["optimizer.lr=-1", "stages.1.bogus=3", "stages.2.rehearse=[nothing]", "trainable=lora"]
    assert lrkit("train", "smoke", *overrides, "-o", str(folder)) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and "Traceback" not in said
    pieces = ("optimizer.lr: got -1", "stages.1.bogus: unknown key", "rehearses 'nothing'", "lora on random weights")
    for piece in pieces:
        assert piece in said, piece
    assert not folder.exists()


def test_a_plain_hugging_face_model_learns_from_a_jsonl_file(tmp_path, capsys):
    """The way of the paper's recipe: somebody's Qwen2-VL, somebody's data, an adapter that names its base."""
    torch.manual_seed(0)
    processor = fresh_processor()
    values = FreshBackbone(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1)
    fresh_backbone(values, processor).model.save_pretrained(tmp_path / "model")
    processor.save(tmp_path / "model")
    (tmp_path / "model" / "prompt.json").unlink()  # lrkit's own file
    Image.new("RGB", (32, 16)).save(tmp_path / "picture.png")
    lines = [
        {
            "image": ["picture.png"] * (i % 3),
            "question": "Which room ?",
            "steps": ["go on"] * (1 + i % 5),
            "answer": str(i),
        }
        for i in range(8)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    small = ["batch_size=2", "accumulate=2", "precision=float32", "eval.samples=2", "model.replay.num_tokens=2"]
    small += [f"stages.{index}.epochs=1" for index in range(5)] + ["eval.max_new_tokens=4", "model.routing.alpha=4"]
    data = [f"data.train={tmp_path}/data.jsonl", f"data.validation={tmp_path}/data.jsonl"]
    folder = tmp_path / "run"
    assert lrkit("train", "m3cot-style", f"init={tmp_path}/model", *data, *small, "-o", str(folder)) == 0
    trained = [record for record in records(folder) if record["kind"] == "train"]
    assert trained[-1]["update"] == 10 and trained[-1]["distill"] > 0  # 8 lines, 4 an update, 5 stages
    info = json.loads((folder / "stages" / "04-latent-4" / "reasoner.json").read_text())
    assert (folder / "stages" / "04-latent-4" / info["base"]).resolve() == tmp_path / "model"
    assert lrkit("validate", str(folder)) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trail-lattent"], "did you mean 'trail-latent'"),
        (["trail-latent", "init=no/such/run"], "init: no/such/run: no such checkpoint"),
        (["smoke", "nonsense"], "must look like key.path=value"),
        (["m3cot-style", "data.train=missing.jsonl"], "missing.jsonl"),
    ],
)
def test_what_is_not_there_is_one_message(tmp_path, capsys, arguments, says):
    assert lrkit("train", *arguments, "-o", str(tmp_path / "run")) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_dry_run_shows_the_stages_and_writes_nothing(tmp_path, capsys):
    assert lrkit("train", "smoke", "--dry-run", "-o", str(tmp_path / "run")) == 0
    said = capsys.readouterr().out
    assert "look" in said and "nothing wrong was found" in said
    assert not (tmp_path / "run").exists()
