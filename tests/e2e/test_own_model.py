"""The road of somebody with a model of their own: a published layout in bfloat16 with 151,936 tokens, the values of the
paper, forty pictures of all kinds. Every verb once, each on what the one before it left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lrkit import Reasoner
from tests.commands import lrkit
from tests.pictures import write_pictures
from tests.published import LATENT_ID, write_published

# Halting is fixed: random weights would never choose to think.
RECIPE = """
name: mine
description: my pictures
init: base
trainable: lora
model:
  think: {max_latent_steps: 4, halting: fixed, latent_scale: embedding}
  replay: {num_tokens: 32, weighting: softmax, formation: tokens}
  distill: {weight: 1.0, window: 3, head: linear}
  routing: {depth: 1, alpha: 32, layers: every_second, router: linear, gate: sigmoid}
  lora: {rank: 8, alpha: 16.0, dropout: 0.05}
data: {kind: jsonl, train: data/train.jsonl, validation: data/held-out.jsonl}
optimizer: {kind: adamw, lr: 4.0e-5, betas: [0.9, 0.999], weight_decay: 0.01, clip: 0.7, warmup: 2, schedule: constant}
batch_size: 2
accumulate: 2
precision: bfloat16
max_pixels: 50176
eval: {every: 0, samples: 2, batch_size: 4, max_new_tokens: 4, show: 1}
save_every: 2
log_every: 1
stages:
  - {name: say, latent_steps: 0, updates: 3}
  - {name: latent-2, latent_steps: 2, updates: 3}
  - {name: latent-4, latent_steps: all, updates: 3}
"""

# Random weights do not end an answer either.
SHORT = ("--max-new-tokens", "6")
QUICK = ("max_new_tokens=6", "repeats=1", "phase_samples=1")


def train(*arguments: str, stop_after: int | None = None) -> tuple[int, str]:
    """The verb in a process of its own; `stop_after` presses Ctrl-C after so many log lines."""
    program = [sys.executable, "-m", "lrkit", "train", "mine.yaml", "-o", "run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Ctrl-C is not passed on to what a shell starts in the background: here it must arrive.
    running = subprocess.Popen(
        program, env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    metrics = Path("run/metrics.jsonl")
    while stop_after is not None and running.poll() is None:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= stop_after:
            running.send_signal(signal.SIGINT)
            break
    said = running.communicate(timeout=300)[1]
    return running.returncode, said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder: a base, data and a recipe; the run once it is trained."""
    home = tmp_path_factory.mktemp("own")
    write_published(home / "base", shard="8MB")
    lines = write_pictures(home / "data").read_text(encoding="utf-8").splitlines(keepends=True)
    held_out = [line for line in lines if any(name in line for name in ('"s5"', '"s10"', "phone", "日本"))]
    (home / "data" / "held-out.jsonl").write_text("".join(held_out), encoding="utf-8")
    train_lines = [line for line in lines if line not in held_out]
    (home / "data" / "train.jsonl").write_text("".join(train_lines), encoding="utf-8")
    (home / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    return home


@pytest.mark.slow
def test_the_whole_road(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(home)
    look_before_training()
    stopped, said = train(stop_after=4)
    assert stopped == 130, said
    assert "with --resume goes on from here" in said and "Traceback" not in said
    done, said = train("--resume")
    assert done == 0, said
    updates = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [record["update"] for record in updates if record["kind"] == "train"] == list(range(1, 10))
    ask_and_measure(capsys)
    for name in ("fp32", "fp16", "int4"):
        export_and_ask(name, capsys)
    export_engine()


def look_before_training() -> None:
    """Data, base and recipe are checked, and the base answers before any training."""
    assert lrkit("validate", "data/train.jsonl", "--checkpoint", "base") == 0
    assert lrkit("validate", "base") == 0
    assert lrkit("validate", "mine.yaml") == 0
    assert lrkit("train", "mine.yaml", "-o", "run", "--dry-run") == 0
    assert lrkit("ask", "base", "--mode", "direct", "--image", "data/chart0.png", "Which bar?", *SHORT) == 0


def ask_and_measure(capsys: pytest.CaptureFixture[str]) -> None:
    """The trained run: its files, its answers with a trace, its accuracy, its cost."""
    assert lrkit("validate", "run") == 0
    info = json.loads(Path("run/stages/02-latent-4/reasoner.json").read_text())
    assert info["latent_id"] == LATENT_ID
    assert lrkit("eval", "run", "--data", "data/held-out.jsonl", "--json", "eval.json", *SHORT) == 0
    assert json.loads(Path("eval.json").read_text())["modes"]["latent"]["samples"] == 4
    question = "هل ترى شيئا؟ 这是什么?"
    asked = ["--image", "data/phone.jpg", question, "--trace", "trace.png", *SHORT]
    capsys.readouterr()
    assert lrkit("ask", "run", *asked) == 0
    with Image.open("trace.png") as trace:
        assert trace.size[0] > 100
    assert lrkit("profile", "run", "--suite", "smoke", "--data", "data/held-out.jsonl", "-o", "profile", *QUICK) == 0
    assert json.loads(Path("profile/report.json").read_text())["runs"]


def export_and_ask(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = {"fp32": ["--target", "cpu-fp32"], "fp16": ["--target", "cuda-fp16"], "int4": ["--int4"]}[name]
    provider = ["provider=cpu"] if name == "fp16" else []
    data = ["--data", "data/held-out.jsonl", "--samples", "4", "--allow-unproven"]
    assert lrkit("export", "run", *target, *data, "-o", name, *provider) == 0
    assert lrkit("validate", name) == 0
    capsys.readouterr()
    assert lrkit("ask", name, "--image", "data/phone.jpg", "Which bar is highest?", *SHORT) == 0
    assert "from 4000 x 3000" in capsys.readouterr().err  # what became of its 12 megapixels
    answer = Reasoner.load(name).ask("data/phone.jpg", "Which bar?", max_new_tokens=4)
    assert answer.resized and answer.latent_steps == 4


def export_engine() -> None:
    """TensorRT-RTX takes the paper's values; its engine joins a bundle."""
    pytest.importorskip("tensorrt_rtx", reason='needs the package tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"')
    data = ["--data", "data/held-out.jsonl", "--samples", "2", "--no-baselines", "--allow-unproven"]
    assert lrkit("export", "run", "--target", "rtx-pc", "--arch", "sm89", *data, "-o", "rtx") == 0
    manifest = json.loads(Path("rtx/bundle.json").read_text())
    assert manifest["programs"]["latent"]["engines"]
