"""The examples run as their first lines say, on a real bundle."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrkit.contract.bundle.manifest import digest
from lrkit.errors import LrkitError
from lrkit.runtime.sdk import Reasoner
from tests.bundles import QUESTION, picture

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NODE = EXAMPLES / "node"


def run(command: list[str | Path], where: Path = EXAMPLES.parent) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=where, timeout=300)


def test_every_example_is_tested() -> None:
    kept = {path.name for path in EXAMPLES.iterdir()} - {"__pycache__"}
    assert kept == {"README.md", "ask_bundle.py", "browser", "node", "whole_road.py"}


def test_the_whole_road_through_the_public_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, which has torch already."""
    road = runpy.run_path(str(EXAMPLES / "whole_road.py"))
    road["travel"](tmp_path)
    told = capsys.readouterr().out
    assert "trained smoke: " in told and "bytes, 0 problems" in told and "latent steps, then" in told
    report = json.loads((tmp_path / "profile" / "report.json").read_text())
    assert {run["id"] for run in report["runs"]} >= {"02-think/latent", "bundle/latent", "bundle/cot"}
    with pytest.raises(LrkitError, match="holds a run already"):
        road["travel"](tmp_path)


def test_ask_bundle_answers_a_folder(bundle: Path, tmp_path: Path) -> None:
    pictures, answers = tmp_path / "pictures", tmp_path / "answers"
    pictures.mkdir()
    for number in range(3):
        picture(number).save(pictures / f"rooms{number}.png")
    (pictures / "notes.txt").write_text("no picture")
    script = [sys.executable, EXAMPLES / "ask_bundle.py", bundle, pictures, answers, QUESTION]
    done = run(script)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (answers / "answers.jsonl").read_text().splitlines()]
    reasoner = Reasoner.load(bundle)
    expected = [str(reasoner.ask(pictures / f"rooms{number}.png", QUESTION)) for number in range(3)]
    assert [row["answer"] for row in rows] == expected
    assert len(list(answers.glob("*.trace.png"))) == 3
    (pictures / "bad.png").write_text("no picture either")
    done = run(script)
    assert done.returncode == 1 and "3 of 4 pictures answered" in done.stdout


def test_ask_bundle_names_what_is_wrong_with_the_bundle(tmp_path: Path) -> None:
    done = run([sys.executable, EXAMPLES / "ask_bundle.py", tmp_path, tmp_path, tmp_path, QUESTION])
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "is no bundle" in done.stderr


@pytest.fixture(scope="module")
def node() -> str:
    """The interpreter, with the packages of the example beside it."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    if not (NODE / "node_modules").is_dir():
        if os.environ.get("LRKIT_NODE") != "1":
            pytest.skip("examples/node has no node_modules; LRKIT_NODE=1 lets this test call npm install")
        done = run(["npm", "install", "--no-audit", "--no-fund"], NODE)
        assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize("mode", ["latent", "cot", "direct"])
def test_node_gives_the_answer_of_python(bundle: Path, node: str, mode, tmp_path: Path) -> None:
    rooms = tmp_path / "rooms.png"
    picture().save(rooms)
    done = run([node, NODE / "ask.mjs", bundle, rooms, QUESTION, mode])
    assert done.returncode == 0, done.stderr
    answer = Reasoner.open(bundle).baseline(mode).ask(rooms, QUESTION, mode)
    assert done.stdout.strip() == answer.text != ""
    expected = (answer.ar_steps, answer.latent_steps, answer.spoken_tokens)
    assert "{} autoregressive steps ({} latent, {} tokens spoken)".format(*expected) in done.stderr


def test_node_counts_visual_tokens_as_the_bundle_says(own_bundle: Path, node: str, tmp_path: Path) -> None:
    """The model was trained on the grid, so that what it then says is another thing."""
    rooms = tmp_path / "rooms.png"
    picture().save(rooms)
    config, manifest = own_bundle / "preprocessor_config.json", own_bundle / "bundle.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "visual_positions": "sequence"}))
    told = json.loads(manifest.read_text())
    told["files"][config.name] = digest(config).model_dump()
    manifest.write_text(json.dumps(told))
    done = run([node, NODE / "ask.mjs", own_bundle, rooms, QUESTION, "cot"])
    assert done.returncode == 0, done.stderr
    answer = Reasoner.open(own_bundle).baseline("cot").ask(rooms, QUESTION, "cot")
    assert done.stdout.strip() == answer.text


def test_node_says_what_it_does_not_do(own_bundle: Path, node: str, tmp_path: Path) -> None:
    odd = tmp_path / "odd.png"
    picture().resize((81, 32)).save(odd)
    done = run([node, NODE / "ask.mjs", own_bundle, odd, QUESTION])
    assert done.returncode == 2 and "81 x 32 pixels, and the model reads it at 80 x 32; scale it first" in done.stderr
    path = own_bundle / "latent.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    done = run([node, NODE / "ask.mjs", own_bundle, odd, QUESTION])
    assert done.returncode == 2 and "latent.onnx was altered" in done.stderr
