"""`lrkit probe` through the command line: the shipped model, one whose latents say nothing, and wrong inputs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from lrkit import Reasoner
from lrkit.contract.bundle.manifest import digest
from lrkit.data.trail import trail_set
from lrkit.probe.options import PARTS, ProbeOptions
from lrkit.probe.probe import probe_reasoner
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.engines.torch.engine import TorchEngine
from tests.bundles import torch_reasoner
from tests.commands import lrkit

pytest.importorskip("sklearn")
TINY = resolve_checkpoint("tiny").parent
SHORT = ["--max-new-tokens", "3"]
FEW = ["--samples", "16", "--batch", "16", *SHORT]


def probed(place: Path, *arguments: str) -> dict[str, Any]:
    assert lrkit("probe", *arguments, "-o", str(place / "report"), "--json", str(place / "probe.json")) == 0
    found = json.loads((place / "probe.json").read_text(encoding="utf-8"))
    assert found == json.loads((place / "report/report.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.long
def test_the_shipped_model_is_carried_by_its_latents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = probed(tmp_path, "tiny", "--seed", "3", "--modes", "patched,sign,words", *FEW)
    assert found["verdict"] == "used" and found["decided"] and found["samples"] == 16 and found["seed"] == 3
    right = found["accuracy"]
    assert right["latent"] > 0.9 and max(right["zero"], right["noise"], right["donor"]) < 0.5 and right["direct"] < 0.7
    assert found["followed"] > 0.8
    assert found["by_step"]["patched"]["1"]["followed"]["value"] > 0.8 and set(found["by_step"]) == {"patched"}
    moved = found["input"]["sign"]["moved"]
    assert moved["at"]["distance"] > 5 * moved["before"]["distance"]
    assert found["words"]["2"]["right_room_first"] > 0.8 and found["words"]["1"]["nearest_word"]["cosine"]["mean"] < 1
    said = "these latents carry the answer"
    assert said in capsys.readouterr().out
    for page in ("report.md", "report.html"):
        assert said.capitalize() in (tmp_path / "report" / page).read_text(encoding="utf-8").split("\n")[0]


def unread(folder: Path) -> Path:
    """The shipped model, but that each of its latents is the same vector whatever the step before it found."""
    shutil.copytree(TINY / "base", folder / "base")
    shutil.copytree(TINY / "latent", folder / "latent")
    info = json.loads((folder / "latent/reasoner.json").read_text(encoding="utf-8"))
    info["settings"]["think"] |= {"latent_scale": "learned", "halting": "fixed", "max_latent_steps": 3}
    info["settings"]["replay"]["num_tokens"] = 0
    info["baselines"] = {}
    (folder / "latent/reasoner.json").write_text(json.dumps(info), encoding="utf-8")
    file = folder / "latent/lrkit.safetensors"
    save_file({**load_file(file), "latent.scale": np.zeros((), np.float32)}, file)
    return folder / "latent"


def test_latents_that_say_nothing_are_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = unread(tmp_path / "model")
    found = probed(tmp_path, str(checkpoint), "--samples", "80", "--modes", "zero", *SHORT)
    assert found["thinking"] >= 60 and found["verdict"] == "unused" and found["decided"]
    assert (
        found["followed"] == 0 and len({found["accuracy"][name] for name in ("latent", "zero", "noise", "donor")}) == 1
    )
    assert "these latents are not used" in capsys.readouterr().out


def test_a_model_that_never_thinks_has_no_latents_in_use(tmp_path: Path) -> None:
    found = probed(tmp_path, "tiny/direct", *FEW)
    assert found["thinking"] == 0 and found["verdict"] == "unused" and "these latents are not used" in found["sentence"]


def test_too_few_samples_ask_for_more(tmp_path: Path) -> None:
    found = probed(tmp_path, "tiny", "--samples", "2", "--modes", "zero", *SHORT)
    assert found["verdict"] in ("used", "unused") and not found["decided"]
    assert found["more_samples"] > 2 and f"--samples {found['more_samples']}" in found["sentence"]


def test_a_bundle_and_lines_of_a_file(step_bundle: Path, tmp_path: Path) -> None:
    """Random weights with three fixed steps; what cannot be known of a file is left out with its reason."""
    lines = write_lines(tmp_path, 6)
    found = probed(tmp_path, str(step_bundle), "--data", str(lines), "--batch", "4")
    assert found["thinking"] == 6 and found["latent_steps"] == 3
    parts = {one["part"]: one["reason"] for one in found["left_out"]}
    assert {"sign", "routing", "ranks and nearest words"} <= set(parts) and all(parts.values())
    assert found["words"]["1"]["right_room_rank"] is None and found["words"]["3"]["states"] == 6
    assert set(found["by_step"]["truncated"]) == {"0", "1", "2"} and found["input"]["replay"]["asked"] == 6


def write_lines(folder: Path, count: int) -> Path:
    """Questions of trails about pictures in files, two about each."""
    rows: list[str] = []
    for number, sample in enumerate(trail_set("main", "test", count)):
        name = f"board{number // 2}.png"
        shown = sample.images[0]
        assert isinstance(shown, Image.Image)
        if number % 2 == 0:
            shown.save(folder / name)
        rows.append(json.dumps({"image": name, "question": sample.question, "steps": [], "answer": sample.answer}))
    (folder / "lines.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "lines.jsonl"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny", "--samples", "0"], "0"),
        (["tiny", "--modes", "zeroes"], "did you mean 'zero'"),
        (["tiny", "--modes"], "--modes"),
        (["tinny"], "did you mean 'tiny'"),
        (["tiny", "--data", "trail:mian"], "did you mean"),
        (["tiny", "--json", "nowhere/there.json/x"], "nowhere"),
        (["tiny", "--data", "none.jsonl"], "is no file"),
        (["tiny", "--data", "empty.jsonl"], "holds no sample"),
        (["tiny", "--data", "gone.jsonl"], "'gone.png' is not there"),
    ],
)
def test_wrong_inputs_are_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere/there.json").write_text("{}")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "gone.jsonl").write_text('{"image": "gone.png", "question": "Start", "steps": [], "answer": "1"}\n')
    assert lrkit("probe", *arguments) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and told.count("\n") == 0 and "Traceback" not in told
    assert not (tmp_path / "runs").exists()


def test_a_bundle_of_one_graph_is_refused_by_its_form(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lrkit("probe", str(bundle), "--samples", "2", "-o", str(tmp_path / "report")) == 2
    assert "form: step" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_model_that_may_take_no_step_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = unread(tmp_path / "model")
    file = checkpoint / "reasoner.json"
    info = json.loads(file.read_text(encoding="utf-8"))
    info["settings"]["think"]["max_latent_steps"] = 0
    file.write_text(json.dumps(info), encoding="utf-8")
    assert lrkit("probe", str(checkpoint), "-o", str(tmp_path / "report")) == 2
    assert "takes no latent steps" in capsys.readouterr().err


def test_a_probe_leaves_a_bundle_and_its_answers_as_they_were(step_bundle: Path, tmp_path: Path) -> None:
    """The hook is between graphs, on the host: no file is written, and none of the graphs has a node for it."""
    files = sorted(file for file in step_bundle.rglob("*") if file.is_file())
    manifest = json.loads((step_bundle / "bundle.json").read_text(encoding="utf-8"))
    before, listed = [digest(file).sha256 for file in files], manifest["files"]
    asked = [(list(sample.images), sample.question) for sample in trail_set("main", "test", 3)]
    reasoner = Reasoner.load(step_bundle)
    plain = reasoner.ask_batch(asked)
    report = probe_reasoner(reasoner, trail_set("main", "test", 3), ProbeOptions(parts=PARTS))
    assert report["latents"]["noise"]["asked"] == 3
    for again in (reasoner, Reasoner.load(step_bundle)):
        for one, other in zip(plain, again.ask_batch(asked), strict=True):
            assert replace(one, timings={}, images=()) == replace(other, timings={}, images=())
    assert before == [digest(file).sha256 for file in files]
    assert files == sorted(file for file in step_bundle.rglob("*") if file.is_file())
    graphs = [name for name in listed if name.endswith(".onnx")]
    assert len(graphs) == 3 and all(listed[name]["sha256"] == digest(step_bundle / name).sha256 for name in graphs)


def test_a_probe_leaves_weights_as_they_were() -> None:
    engine = torch_reasoner().engine
    assert isinstance(engine, TorchEngine)
    before = {name: tensor.clone() for name, tensor in engine.reasoner.state_dict().items()}
    probe_reasoner(Reasoner(engine), trail_set("main", "test", 2), ProbeOptions(parts=PARTS, max_new_tokens=2))
    after = engine.reasoner.state_dict()
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
