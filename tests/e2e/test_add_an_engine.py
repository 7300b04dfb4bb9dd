"""A stranger adds an engine: one file (tests/toy_engine.py) and one row, and every verb that asks a bundle takes it."""

import json
from pathlib import Path
from typing import Any

import pytest

from lrkit import Reasoner
from lrkit.cli.main import main
from lrkit.errors import ConfigError, LrkitError, UserError
from lrkit.gpus import Gpus
from lrkit.profile.ceilings.machine import engine_states
from lrkit.registry import Registry
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.engines import table
from lrkit.runtime.engines.table import EngineChoice
from tests.bundles import QUESTION, picture


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {**table.ENGINES.rows, "toy": "tests.toy_engine:ROW"}
    monkeypatch.setattr(table, "ENGINES", Registry("engine", rows))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code if isinstance(left.value.code, int) else 0


def test_it_answers_as_the_engine_that_it_echoes(bundle: Path) -> None:
    expected = Reasoner.load(bundle, threads=1).ask(picture(), QUESTION)
    reasoner = Reasoner.load(bundle, engine="toy", engine_options={"workers": 1})
    found = reasoner.ask(picture(), QUESTION)
    assert (found.text, found.latent_steps, found.replayed_tokens) == (
        expected.text, expected.latent_steps, expected.replayed_tokens
    )  # fmt: skip
    assert (reasoner.engine.name, reasoner.engine.place, reasoner.engine.phases) == ("toy", "cpu", "differences")
    assert check_bundle(bundle, EngineChoice("toy")).problems == []
    assert "toy" in [state.name for state in engine_states(Gpus(()))]


def test_every_verb_takes_it(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "picture.png"
    picture().save(image)
    lines = [json.dumps({"image": image.name, "question": QUESTION, "steps": [], "answer": "3"})] * 2
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines))
    wanted = ("--engine", "toy", "--engine-option", "workers=1")
    assert run("ask", bundle, QUESTION, "--image", image, *wanted) == 0
    assert run("validate", bundle, *wanted) == 0
    report = tmp_path / "eval.json"
    assert run("eval", bundle, "--data", data, "--latency-samples", 1, *wanted, "--json", report) == 0
    runs_on = json.loads(report.read_text())["runs_on"]
    assert (runs_on["engine"], runs_on["device"]) == ("toy", "cpu")
    few = ("--runs", "latent", "--set", "samples.0.count=1", "--set", "repeats=1", "--set", "phase_samples=1")
    assert run("profile", bundle, "--data", data, *few, *wanted, "-o", tmp_path / "profile") == 0
    (model,) = json.loads((tmp_path / "profile" / "report.json").read_text())["models"]
    assert (model["engine"], model["device"], model["threads"]) == ("toy", "cpu", None)
    assert run("ask", bundle, QUESTION, "--image", image, "--engine", "toy", "--engine-option", "wokers=1") == 2
    assert "did you mean 'workers'?" in " ".join(capsys.readouterr().err.split())


def test_what_it_does_not_take_is_one_sentence(bundle: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^engine toy: wokers: unknown key; allowed: workers; did you mean 'workers'"
    ):
        Reasoner.load(bundle, engine="toy", engine_options={"wokers": 1})
    with pytest.raises(ConfigError, match=r"^engine toy: workers: "):
        Reasoner.load(bundle, engine="toy", engine_options={"workers": 0})
    with pytest.raises(
        UserError, match=r"^threads is for engine onnxruntime or openvino, and the engine is toy; leave it out$"
    ):
        Reasoner.load(bundle, engine="toy", threads=1)
    with pytest.raises(UserError, match=r"^workers is for engine toy, and the engine is onnxruntime; leave it out$"):
        Reasoner.load(bundle, engine_options={"workers": 1})
    with pytest.raises(UserError, match=r"^threads is given twice"):
        Reasoner.load(bundle, threads=1, engine_options={"threads": 1})


def test_torch_is_a_row_like_the_others(bundle: Path) -> None:
    checkpoint = bundle.parent / "latent"
    engine = Reasoner.open(checkpoint, engine="torch", engine_options={"dtype": "float32"}).engine
    assert (engine.name, engine.dtype, engine.place, engine.bundle) == ("torch", "float32", "cpu", None)
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (bundle, {"engine": "torch"}, "is opened as a bundle, and engine torch runs checkpoints; leave engine out"),
        (checkpoint, {"engine": "toy"}, "is no bundle, and an engine runs bundles; export it first"),
        (checkpoint, {"engine": "torch", "engine_options": {"dtyp": "x"}}, "engine torch: dtyp: unknown key"),
        (
            checkpoint,
            {"engine": "toys"},
            "known are onnxruntime, openvino, tensorrt-rtx, tensorrt, torch, toy; did you mean 'toy",
        ),
    ]
    for path, options, said in cases:
        with pytest.raises(LrkitError, match=said):
            Reasoner.open(path, **options)
