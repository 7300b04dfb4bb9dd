"""The rules of the house that a machine can check: sizes, direction of imports, cheap imports, public names."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import lrkit
from lrkit.cli.main import VERBS
from lrkit.families.table import FAMILIES
from lrkit.resources import find_recipe
from lrkit.train.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lrkit"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
FILE_EXCEPTIONS: dict[str, int] = {}
"""Path -> lines allowed. Empty, and meant to stay so."""
FUNCTION_EXCEPTIONS: dict[str, int] = {}
"""path:function -> lines allowed. Empty, and meant to stay so."""

TORCH_FOLDERS = {"lrkit/runtime/engines/torch", *(package.replace(".", "/") for package in FAMILIES.rows.values())}
"""Parts of the torch-free rooms that are made of torch or hold a part that is; imported when they are asked for."""
LIGHT_ROOMS = {"runtime", "cli", "contract", "pictures", "checkpoints", "families"}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_file_or_function_is_too_long() -> None:
    assert len(MODULES) > 30, "the sweep must see the package"
    too_long: list[str] = []
    for file in SOURCES:
        name = file.relative_to(ROOT).as_posix()
        text = file.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > FILE_EXCEPTIONS.get(name, MAX_FILE_LINES):
            too_long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_EXCEPTIONS.get(f"{name}:{node.name}", MAX_FUNCTION_LINES):
                    too_long.append(f"{name}:{node.lineno} {node.name}: {lines} lines")
    assert too_long == []


def test_every_module_says_what_it_is() -> None:
    written = [file for file in SOURCES if file.stat().st_size]
    assert [str(file) for file in written if not ast.get_docstring(ast.parse(file.read_text()))] == []


def test_packages_hold_only_a_docstring() -> None:
    files = [file for file in PACKAGE.rglob("__init__.py") if file.parent != PACKAGE]
    assert len(files) >= 9
    assert [str(file) for file in files if len(ast.parse(file.read_text()).body) != 1] == []


def test_runtime_and_base_import_without_torch() -> None:
    """A fresh Python in which torch and transformers cannot be imported, as in the base install."""
    light = [
        module_name(file)
        for file in MODULES
        if file.parent == PACKAGE or file.relative_to(PACKAGE).parts[0] in LIGHT_ROOMS
        if file.parent.relative_to(ROOT).as_posix() not in TORCH_FOLDERS and file.name != "__main__.py"
    ]
    assert len(light) > 80
    program = (
        "import importlib, json, sys\n"
        "heavy = ('torch', 'transformers', 'peft', 'accelerate', 'datasets', 'sklearn', 'onnx', 'matplotlib')\n"
        "for name in heavy: sys.modules[name] = None\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print('imported', len(json.loads(sys.argv[1])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(light)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"imported {len(light)}"


def test_import_is_silent_and_lazy() -> None:
    program = "import lrkit, sys; print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'PIL')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_working_folders_hold_no_code() -> None:
    folders = [ROOT / name for name in ("train", "export", "profiles")]
    assert all((folder / "README.md").is_file() for folder in folders)
    assert [str(file) for folder in folders for file in folder.rglob("*.py")] == []


def test_readme_lists_the_verbs_there_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `lrkit ([\w-]+)` \|", readme, re.MULTILINE) == list(VERBS.rows)
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md")):
        text = file.read_text(encoding="utf-8")
        named = re.findall(r"(?:^ {4}|`)lrkit ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= set(VERBS.rows), file
    recipes = re.findall(r"^ {4}lrkit train ([a-z][\w-]*)(.*)", readme, re.MULTILINE)
    assert recipes
    for name, overrides in recipes:
        assert load_recipe(find_recipe(name), [word for word in overrides.split() if "=" in word])


def test_every_verb_file_is_in_the_table() -> None:
    """A file of `lrkit/cli` with EXAMPLES is a verb; the others are `main` and what verbs share."""
    with_examples = {
        file.stem.replace("_", "-") for file in (PACKAGE / "cli").glob("*.py") if "\nEXAMPLES =" in file.read_text()
    }
    assert with_examples == set(VERBS)


def test_make_targets_named_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named: set[str] = set()
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run"):
        named |= set(re.findall(r"^(?: {4})?make (\w+)", file.read_text(), re.MULTILINE))
    assert {"demo", "test", "check"} <= named <= targets


def test_version_is_in_the_changelog() -> None:
    assert f"## [{lrkit.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_file_names_stand_once() -> None:
    """But in slices, whose files have fixed names: verbs are named as what they call; families, engines; tables."""
    slices = ("lrkit/cli/", "lrkit/families/", "lrkit/runtime/engines/")
    names = [
        file.stem
        for file in MODULES
        if file.stem not in ("__init__", "__main__", "table")
        and not file.relative_to(ROOT).as_posix().startswith(slices)
    ]
    assert len(names) > 100
    assert sorted({name for name in names if names.count(name) > 1}) == []
