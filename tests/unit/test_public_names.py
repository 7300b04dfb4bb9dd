"""The names that `lrkit` itself has: a list, lazy, typed for editors, with docstrings, and mistakes in one sentence."""

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lrkit
from lrkit import LrkitError, UserError, check_bundle, evaluate_model, export_model, profile_models, train_recipe

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "lrkit" / "__init__.py"
NAMES = [name for name in lrkit.__all__ if name != "__version__"]


def test_every_name_is_there_and_no_other() -> None:
    assert lrkit.__all__ == sorted(lrkit.__all__) and len(NAMES) >= 14
    for name in NAMES:
        assert getattr(lrkit, name) is not None and name in dir(lrkit)
    with pytest.raises(AttributeError, match=r"has no attribute 'Resoner'; it has Answer, "):
        lrkit.Resoner  # noqa: B018


def test_no_name_is_that_of_a_package() -> None:
    """Once lrkit.train is imported, the attribute `train` is that package, whatever function was meant."""
    packages = {path.stem for path in SOURCE.parent.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert {"train", "export", "profile", "evaluate", "data"} <= packages
    assert set(NAMES) & packages == set()


def test_editors_see_what_is_imported() -> None:
    tree = ast.parse(SOURCE.read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == lrkit._LAZY and sorted(typed) == sorted(NAMES)


def test_every_name_says_what_it_is_and_functions_what_they_raise() -> None:
    for name in NAMES:
        text = inspect.getdoc(getattr(lrkit, name)) or ""
        assert len(text) > 10 and f"`{name}`" in (lrkit.__doc__ or ""), name
        if inspect.isfunction(getattr(lrkit, name)):
            assert "Raises:" in text, name
            assert "return" in inspect.get_annotations(getattr(lrkit, name)), name


def test_all_names_are_imported_without_torch_and_lrkit_without_numpy() -> None:
    """A fresh Python in which torch cannot be imported, as in the base install."""
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'onnx', 'sklearn'): sys.modules[name] = None\n"
        "import lrkit, json\n"
        "first = [name for name in ('numpy', 'PIL', 'pydantic', 'onnxruntime') if name in sys.modules]\n"
        "for name in lrkit.__all__: getattr(lrkit, name)\n"
        "print(json.dumps([first, lrkit.Sample.__name__]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], "Sample"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda place: train_recipe("smok", place / "run"), "did you mean 'smoke'"),
        (lambda place: train_recipe("smoke", place / "run", ["optimizer.lr=-1"]), "optimizer.lr"),
        (lambda place: lrkit.load_recipe("smoke", ["seeed=1"]), "did you mean 'seed'"),
        (lambda place: export_model("tiny", place / "out", "cpu-int5"), "did you mean 'cpu-int4'"),
        (lambda place: export_model("tiny", place / "out", changes=["limits.max_images=0"]), "limits.max_images"),
        (lambda place: export_model("tinny", place / "out", samples=lrkit.load_samples("trail:main", 1)), "'tiny'"),
        (lambda place: export_model("tiny", place / "out", samples=()), "no samples were given"),
        (lambda place: evaluate_model("tinny"), "did you mean 'tiny'"),
        (lambda place: evaluate_model("tiny", samples=0), "samples is 0"),
        (lambda place: evaluate_model("tiny", modes=["fast"]), "unknown mode 'fast'; give one of latent, cot, direct"),
        (lambda place: evaluate_model("tiny", place / "none.jsonl"), "is no file"),
        (lambda place: profile_models([]), "no model was named; give a bundle"),
        (lambda place: profile_models(["tiny"], "smok"), "did you mean 'smoke'"),
        (lambda place: profile_models("tinny"), "did you mean 'tiny'"),
        (lambda place: profile_models(["tinny"], output=place / "out"), "did you mean 'tiny'"),
        (lambda place: check_bundle(place), "is no bundle"),
        (lambda place: lrkit.open_bundle(place / "none"), "no such folder"),
        (lambda place: lrkit.load_samples("trail:mian", 1), "did you mean 'trail:main'"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(call: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        call(tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value) and isinstance(caught.value, LrkitError)
    assert list(tmp_path.iterdir()) == []
