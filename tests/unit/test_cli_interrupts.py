"""Ctrl-C and SIGTERM at any moment, -OO, and an install without the optional packages: one sentence each."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "Take 2 hops. Which room are you in? Start in room 3"
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
AT_IMPORT = """
import os, signal, sys
import lrkit.__main__
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))
_, module, number, *words = sys.argv
sys.meta_path.insert(0, Finder())
sys.argv = ["lrkit", *words]
lrkit.__main__.main()
"""


@pytest.mark.parametrize(
    ("module", "number", "says"),
    [
        ("typer", signal.SIGINT, "interrupted"),
        ("lrkit.cli.ls", signal.SIGINT, "interrupted"),
        ("lrkit.cli.ls", signal.SIGTERM, "terminated"),
        ("lrkit.runtime.sdk", signal.SIGTERM, "terminated"),
    ],
)
def test_a_signal_while_modules_are_read_is_one_sentence(module: str, number: int, says: str) -> None:
    """A Ctrl-C within the first second gave twenty lines of importlib."""
    arguments = ["ls"] if "sdk" not in module else ["ask", "none", QUESTION]
    command = [sys.executable, "-c", AT_IMPORT, module, str(int(number)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == 130
    assert done.stderr.strip().startswith(says) and done.stderr.strip().count("\n") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_verb_works_is_one_sentence(number: int, bundle: Path, tmp_path: Path) -> None:
    """The set of questions is a pipe that stays open, so that the verb is at work when the signal comes."""
    pipe = tmp_path / "data.jsonl"
    os.mkfifo(pipe)
    file = tmp_path / "out.json"
    program = (
        "import lrkit.evaluate.evaluation as run, os, sys\nfrom lrkit.__main__ import main\n"
        "whole = run._time_one_by_one\n"
        f"run._time_one_by_one = lambda *given: (os.kill(os.getpid(), {int(number)}), whole(*given))\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program, "eval", str(bundle), "--samples", "2", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() in ("interrupted; nothing more was written", "terminated; nothing more was written")
    assert not file.exists()


def test_a_program_that_calls_main_keeps_its_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrkit.cli.main import main

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        main(["ls", "recipe", "--json", os.devnull])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    left: list[object] = []

    def in_thread() -> None:
        monkeypatch.setattr(sys, "argv", ["lrkit", "ls", "recipe", "--json", os.devnull])
        try:
            main()
        except SystemExit as exit:
            left.append(exit.code)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert left == [0] and signal.getsignal(signal.SIGTERM) == before[0]


def test_without_docstrings_help_has_its_words_and_transformers_is_one_sentence() -> None:
    program = (
        "import contextlib, io, json\nfrom lrkit.cli.main import main\nfrom lrkit.errors import require\nfound = []\n"
        "for words in (['--help'], ['ask', '--help'], ['ls', 'recipe']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        try: main(words)\n"
        "        except SystemExit as left: found.append(out.getvalue())\n"
        "try: require('transformers', 'train')\n"
        "except ImportError as error: found.append(str(error))\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", program], capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == 0, done.stderr
    top, verb, listed, refused = json.loads(done.stdout)
    assert "few latent steps, from training" in top and "List what ships with" in top and "Train a reasoner" in top
    assert "Ask a question, or several, about one picture, several, or none" in verb and "Examples:" in verb
    assert "trail-latent" in listed
    assert "python -OO" in refused and "; leave that out" in refused


WITHOUT = """
import contextlib, io, json, sys
for name in ("torch transformers peft accelerate datasets sklearn tensorboard safetensors onnx onnx_ir onnxscript "
             "matplotlib jinja2 huggingface_hub tensorrt_rtx").split():
    sys.modules[name] = None
from lrkit.cli.main import main
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as left:
            code = left.code or 0
    print(json.dumps([code, err.getvalue()]))
"""
NEEDS: dict[str, list[list[str]]] = {
    "train": [
        ["ask", "tiny", QUESTION], ["ask", "tiny", QUESTION, "--mode", "cot", "--trace", "t.png"], ["eval", "tiny"],
        ["eval", "BUNDLE"], ["train", "smoke"], ["train", "smoke", "--resume"], ["demo"], ["cp", "tiny", "copy"],
        ["ablate", "trail-ablation"], ["profile", "tiny"], ["profile", "BUNDLE"],
        ["sweep", "tiny", "threads=1"],
        ["profile", "random:smolvlm-256m"],
    ],
    "export": [
        ["export", "tiny"], ["export", "tiny", "--int4", "-o", "out"], ["preflight", "tiny"],
        ["preflight", "BUNDLE"], ["preflight", "m.onnx", "--target", "ort"],
        ["export", "random:qwen2-vl-2b"], ["export", "tiny", "--script", "b.py"],
    ],
}  # fmt: skip
NEEDS_NONE = [
    ["ls"], ["cp", "recipe/smoke", "copy.yaml"], ["doctor", "--no-rates"], ["validate", "data.jsonl"],
    ["validate", "trail-latent"], ["validate", "cpu-int4"], ["validate", "h100-sxm"], ["validate", "qwen2-vl-2b"],
    ["validate", "tiny"], ["validate", "BUNDLE"], ["train", "smoke", "--dry-run"], ["ask", "BUNDLE", QUESTION],
]  # fmt: skip


def test_every_verb_in_a_base_install_works_or_names_its_extra(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"question": "q", "steps": [], "answer": "a"}\n')
    (tmp_path / "m.onnx").write_bytes(b"x")
    asked = [(extra, words) for extra, rows in NEEDS.items() for words in rows] + [("", words) for words in NEEDS_NONE]
    lines = [[str(bundle) if word == "BUNDLE" else word for word in words] for _, words in asked]
    command = [sys.executable, "-c", WITHOUT, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    for (extra, words), line in zip(asked, done.stdout.splitlines(), strict=True):
        code, err = json.loads(line)
        if extra:
            assert code == 2 and f'pip install "lrkit[{extra}]"' in err.splitlines()[-1], (words, err)
            assert "Traceback" not in err
        else:
            assert code == 0, (words, err)


def test_a_damaged_install_is_one_sentence(bundle: Path, tmp_path: Path) -> None:
    """onnxruntime comes with every install; where it is gone, asking a bundle ended in a traceback."""
    lines = [["ask", str(bundle), QUESTION], ["validate", str(bundle)]]
    without = WITHOUT.replace("for name in", "sys.modules['onnxruntime'] = None\nfor name in", 1)
    assert without != WITHOUT
    command = [sys.executable, "-c", without, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        code, err = json.loads(line)
        assert (code, "Traceback" in err) == (2, False), err
        assert err.splitlines()[-1].endswith("pip install --force-reinstall onnxruntime"), err
