"""A bundle through the command line, and in a Python that has nothing but the base install."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lrkit import Reasoner
from tests.bundles import QUESTION, picture, torch_reasoner
from tests.commands import lrkit

ROOT = Path(__file__).resolve().parents[2]

BASE_ONLY = """
import importlib.abc, sys

EXTRA = {"torch", "transformers", "peft", "accelerate", "datasets", "sklearn", "scipy", "safetensors", "onnx",
         "onnx_ir", "onnxscript", "matplotlib", "tensorboard", "jinja2", "huggingface_hub"}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRA:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import lrkit
imported = len(sys.modules)
from lrkit import Reasoner
answer = Reasoner.load(sys.argv[1], threads=1).ask(sys.argv[2], sys.argv[3])
answer.save_trace(sys.argv[4])
assert not EXTRA & set(sys.modules), EXTRA & set(sys.modules)
assert not {"packaging", "tomllib"} & set(sys.modules), "an answer looks up no versions"
import json
print(json.dumps({"imported": imported, **answer.to_dict()}))
from lrkit.cli.main import main
main(["ask", sys.argv[1], "--image", sys.argv[2], sys.argv[3]])
"""


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    path = tmp_path / "rooms.png"
    picture().save(path)
    return path


def recorded(bundle: Path) -> list[dict]:
    return json.loads((bundle / "bundle.json").read_text())["samples"]


def test_the_base_install_answers_without_torch(bundle: Path, rooms: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.png"
    command = [sys.executable, "-c", BASE_ONLY, str(bundle), str(rooms), QUESTION, str(trace)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    first, spoken = done.stdout.splitlines()
    answer = json.loads(first)
    assert answer["latent_steps"] == recorded(bundle)[0]["latent_steps"] == 3
    assert answer["text"] == spoken != ""
    assert answer["imported"] < 200, "modules after `import lrkit`: it loads what is used when it is used"
    assert trace.stat().st_size > 1000


def test_ask_prints_the_answer_and_writes_its_history(
    bundle: Path, rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "answer.json"
    assert lrkit("ask", bundle, "--image", rooms, QUESTION, "--threads", 1, "--json", report) == 0
    captured = capsys.readouterr()
    answer = json.loads(report.read_text())
    assert captured.out.strip() == answer["text"] != ""
    assert f"{answer['ar_steps']} autoregressive steps (3 latent" in captured.err
    assert answer["ar_steps"] == 3 + answer["spoken_tokens"] - 1, "the last token, cut by the limit, is not fed back"


def test_eval_asks_each_program_of_the_bundle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "eval.json"
    given = ("--modes", "latent,cot", "--samples", 4, "--latency-samples", 2, "--json", report)
    assert lrkit("eval", bundle, *given) == 0
    figures = json.loads(report.read_text())
    where = {"engine": "onnxruntime", "device": "cpu", "threads": None, "dtype": "fp32", "attention": None}
    assert figures["runs_on"] == where, "a program has kernels of its own"
    assert figures["modes"]["latent"]["latent_steps_histogram"] == {"3": 4}
    assert figures["modes"]["cot"]["routed_depths_mean"] == [0, 0, 0, 0], "the cot program routes nothing"
    assert figures["modes"]["latent"]["latency_sec"]["count"] == 2


def test_validate_runs_the_recorded_samples(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "findings.json"
    assert lrkit("validate", bundle, "--json", report) == 0
    assert "4 of 4 recorded samples" in capsys.readouterr().out
    findings = json.loads(report.read_text())
    assert findings["kind"] == "bundle" and findings["ok"]
    assert findings["samples"] == {"run": 4, "same": 4}
    assert set(findings["programs"]) == {"latent", "cot"}


def test_validate_names_the_sample_that_answers_otherwise(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own_bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["samples"][2]["token_ids"][0] += 1
    path.write_text(json.dumps(manifest))
    assert lrkit("validate", own_bundle) == 2
    captured = capsys.readouterr()
    assert "3 of 4 recorded samples" in captured.out
    assert f"{own_bundle}: recorded sample 2 (cot) gives" in captured.err and "recorded sample 0" not in captured.err


@pytest.mark.parametrize("verb", ["ask", "eval", "validate"])
def test_a_damaged_bundle_ends_every_verb_with_one_message(
    own_bundle: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own_bundle / "latent.onnx"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rest = ("Read the signs.",) if verb == "ask" else ()
    assert lrkit(verb, own_bundle, *rest) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("error: ") and "latent.onnx is cut off" in line


def test_ask_and_eval_say_that_a_picture_was_shrunk(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture ten times as long as the bundle takes; before, it was refused."""
    picture().resize((800, 320)).save(tmp_path / "large.png")
    report = tmp_path / "answer.json"
    assert lrkit("ask", bundle, "--image", tmp_path / "large.png", QUESTION, "--json", report) == 0
    printed = capsys.readouterr()
    (resized,) = json.loads(report.read_text())["resized"]
    width, height = resized["used"]
    note = f"note: the model saw picture 1 from 800 x 320 to {width} x {height} pixels (max_patches)"
    assert note in printed.err and "note" not in printed.out
    smaller = ("ask", bundle, "--image", tmp_path / "large.png", QUESTION, "--max-pixels", 1000, "--json", report)
    assert lrkit(*smaller) == 0 and "(max_pixels)" in capsys.readouterr().err
    line = {"image": "large.png", "question": QUESTION, "steps": [], "answer": "3"}
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    given = ("--data", tmp_path / "data.jsonl", "--modes", "latent", "--latency-samples", 0, "--json", report)
    assert lrkit("eval", bundle, *given) == 0
    assert json.loads(report.read_text())["modes"]["latent"]["pictures_resized"] == 1
    assert "note: pictures were shrunk to the model's limits" in capsys.readouterr().err


def test_depths_of_each_step_are_told_by_torch_and_program_alike(bundle: Path, step_bundle: Path) -> None:
    """The trace says of each latent step how many extra passes it took; those of the prompt are the rest."""
    one = torch_reasoner().ask(picture(), QUESTION)
    others = [Reasoner.load(place).ask(picture(), QUESTION) for place in (bundle, step_bundle)]
    assert len(one.step_depths) == one.latent_steps == 3 and all(one.step_depths)
    assert sum(one.step_depths) < sum(one.depths)
    assert [other.step_depths for other in others] == [one.step_depths] * 2
