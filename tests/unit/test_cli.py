"""The command line: exit codes, one message per error, help that costs no torch, reports as JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lrkit import __version__
from lrkit.cli.main import VERBS
from tests.commands import lrkit

ROOT = Path(__file__).resolve().parents[2]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("--version") == 0
    assert capsys.readouterr().out == f"lrkit {__version__}\n"


def test_help_shows_every_verb_without_torch() -> None:
    program = (
        "import sys\nfrom lrkit.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as left: assert not left.code\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets') if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    listed = done.stdout.partition("Commands:")[2].partition("\n\n")[0]
    assert re.findall(r"^  ([\w-]+)", listed, re.MULTILINE) == list(VERBS.rows)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("verb", list(VERBS.rows))
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit(verb, "--help") == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert f"    lrkit {verb}" in text, "examples stand on lines of their own"


def test_an_unknown_verb_is_corrected(capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("docter") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: unknown verb 'docter'") and "did you mean 'doctor'" in captured.err


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("doctor", "--nonsense") == 2
    assert "--nonsense" in capsys.readouterr().err


def test_an_error_is_one_message_and_with_debug_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("cp", "no-such-recipe") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown resource 'no-such-recipe'; known: ") and "Traceback" not in error
    done = subprocess.run(
        [sys.executable, "-m", "lrkit", "cp", "no-such-recipe", "--debug"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr and "UnknownNameError" in done.stderr


def test_a_file_that_cannot_be_written_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert lrkit("ls", "--json", str(tmp_path / "file" / "names.json")) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'file'}")


@pytest.mark.parametrize(
    ("stop", "says"), [(KeyboardInterrupt(), "interrupted"), (KeyboardInterrupt("go on with --resume"), "--resume")]
)
def test_ctrl_c_is_one_sentence_and_130(
    stop: KeyboardInterrupt, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise stop

    monkeypatch.setattr("lrkit.cli.doctor.inspect_environment", interrupted)
    assert lrkit("doctor") == 130
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0]


def test_doctor_reports_the_machine_and_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "doctor.json"
    assert lrkit("doctor", "--no-rates", "--json", str(file)) == 0
    shown = capsys.readouterr().out
    report = json.loads(file.read_text())
    assert (report["kind"], report["lrkit"]) == ("doctor", __version__)
    assert "CPUExecutionProvider" in report["onnxruntime_providers"] and report["rates"] is None
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert set(engines) == {"torch", "onnxruntime", "openvino", "tensorrt-rtx", "tensorrt"}
    assert engines["onnxruntime"]["usable"]
    assert all(name in shown for name in engines)
    assert report["parts"]["base"]["present"] is True
    for name, part in report["parts"].items():
        assert part["present"] is (part["command"] is None) is (not part["missing"])
        if name != "base" and part["missing"]:
            assert f'pip install "lrkit[{name}]"' in shown


def test_ls_and_cp_agree_on_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "names.json"
    assert lrkit("ls", "recipe", "--json", str(file)) == 0
    names = [row["name"] for row in json.loads(file.read_text())["resources"]]
    assert names
    shown = capsys.readouterr().out
    for name in names:
        assert name in shown
        assert lrkit("cp", f"recipe/{name}", str(tmp_path)) == 0
        assert (tmp_path / f"{name}.yaml").read_text() == (ROOT / f"train/recipes/{name}.yaml").read_text()
    assert lrkit("cp", f"recipe/{names[0]}", str(tmp_path)) == 2
    assert lrkit("cp", f"recipe/{names[0]}", str(tmp_path), "--force") == 0


@pytest.mark.parametrize("name", ["bundle.json", "reasoner.json", "config.json"])
def test_one_file_of_a_folder_is_answered_with_the_folder(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read as the shape of a model, it was 25 lines of unknown keys."""
    (tmp_path / name).write_text("{}")
    assert lrkit("validate", str(tmp_path / name)) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith(f"is one file of a bundle or checkpoint; give its folder, {tmp_path}")
