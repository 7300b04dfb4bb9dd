"""The examples run as their first lines say, on a real bundle."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from lrkit.errors import LrkitError
from lrkit.runtime.sdk import Reasoner
from tests.bundles import QUESTION, picture

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(command: list[str | Path], where: Path = EXAMPLES.parent) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=where, timeout=300)


def test_every_example_is_tested() -> None:
    kept = {path.name for path in EXAMPLES.iterdir()} - {"__pycache__"}
    assert kept == {"README.md", "ask_bundle.py", "browser", "cpp", "java", "node", "whole_road.py"}


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
