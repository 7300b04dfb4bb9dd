"""Errors, registries, resources and provenance: the parts everything else stands on."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lrkit import __version__, environment, errors, resources
from lrkit.config import load_yaml
from lrkit.errors import (
    CheckpointError,
    ConfigError,
    LrkitError,
    MissingExtraError,
    UnknownNameError,
    UserError,
    require,
)
from lrkit.provenance import collect, git_state
from lrkit.registry import Registry

ROOT = Path(__file__).parents[2]


def test_the_drawn_error_tree_is_the_real_one() -> None:
    drawn = set(re.findall(r"(?:\|--|`--|^) *(\w*(?:Error|Exceeded|Cancelled))", errors.__doc__ or "", re.MULTILINE))
    real = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, LrkitError)}
    assert drawn == real | {"LrkitError"}
    assert issubclass(UserError, ValueError) and issubclass(MissingExtraError, ImportError)


def test_a_missing_package_names_the_extra_that_brings_it() -> None:
    with pytest.raises(MissingExtraError, match=re.escape('pip install "lrkit[export]"')) as caught:
        require("no_such_package.part", "export")
    assert "no_such_package," in str(caught.value)


def test_a_package_that_is_broken_inside_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import its_own_missing_part\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "raises.py").write_text("raise ValueError('no docstring\\nfound')\n")
    for module, says in (("half_there", "its_own_missing_part"), ("raises", "no docstring found")):
        with pytest.raises(MissingExtraError, match=f"is installed but cannot be imported .*{says}.*; install it"):
            require(module, "train")


def test_registry_imports_late_and_corrects_names() -> None:
    table: Registry[object] = Registry("thing", {"encoder": "json:JSONEncoder", "broken": "no_such_module:x"})
    assert list(table) == ["broken", "encoder"] and "encoder" in table and len(table) == 2
    assert table.load("encoder") is json.JSONEncoder
    with pytest.raises(UnknownNameError, match="known: broken, encoder; did you mean 'encoder'"):
        table.load("encodr")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with two recipes, one target of the same name as one of them, and a checkpoint."""
    package = tmp_path / "site" / "lrkit"
    for name, text in {
        "train/recipes/trail.yaml": "description: a recipe\n",
        "train/recipes/other.yaml": "description: another\n",
        "export/targets/trail.yaml": "description: a target\n",
    }.items():
        file = package / "_shipped" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for name in ("latent", "cot"):
        folder = package / "assets" / "tiny" / name
        folder.mkdir(parents=True)
        (folder / "reasoner.json").write_text(json.dumps({"stage": name}))
    monkeypatch.setattr(resources, "_PACKAGE", package)
    monkeypatch.setattr(resources, "_TINY", package / "assets" / "tiny")
    return package


def test_resources_are_found_in_a_wheel_by_name_and_by_path(shipped: Path) -> None:
    by_name = resources.find_recipe("trail")
    assert by_name == shipped / "_shipped/train/recipes/trail.yaml"
    assert resources.find_recipe(str(by_name)) == by_name
    assert [(r.name, r.description) for r in resources.list_resources("recipe")] == [
        ("other", "another"),
        ("trail", "a recipe"),
    ]
    with pytest.raises(UnknownNameError, match="unknown recipe 'trial'; known: other, trail; did you mean 'trail'"):
        resources.find_recipe("trial")
    with pytest.raises(ConfigError, match="no such file"):
        resources.find_recipe("folder/trail.yaml")


def test_a_name_of_two_kinds_has_to_be_told_apart(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="recipe/trail, target/trail"):
        resources.copy_resource("trail", tmp_path)
    copy = resources.copy_resource("target/trail", tmp_path / "new" / "mine.yaml")
    assert copy.read_text() == "description: a target\n"
    with pytest.raises(UserError, match="is there already"):
        resources.copy_resource("target/trail", copy)
    assert resources.copy_resource("other", tmp_path) == tmp_path / "other.yaml"


def test_checkpoints_are_found_by_name_and_by_folder(shipped: Path, tmp_path: Path) -> None:
    tiny = shipped / "assets/tiny"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert resources.resolve_checkpoint("tiny") == tiny / "latent"
    assert resources.resolve_checkpoint("tiny/cot") == tiny / "cot"
    assert resources.resolve_checkpoint(tiny / "cot") == tiny / "cot"
    assert [r.name for r in resources.list_checkpoints()] == ["tiny", "tiny/cot", "tiny/latent"]
    with pytest.raises(CheckpointError, match=r"no such checkpoint.*tiny, tiny/cot, tiny/latent.*did you mean 'tiny"):
        resources.resolve_checkpoint("tinny")
    with pytest.raises(CheckpointError, match=r"neither reasoner\.json nor config\.json; it holds .*cot"):
        resources.resolve_checkpoint(tiny)
    with pytest.raises(CheckpointError, match="give a folder that"):
        resources.resolve_checkpoint(empty)


def test_every_shipped_yaml_reads_and_says_what_it_is_for() -> None:
    found = [resource for resource in resources.list_everything() if resource.path.suffix == ".yaml"]
    assert found, "recipes ship"
    assert [resource.path.name for resource in found if not load_yaml(resource.path).get("description")] == []


def test_provenance_is_plain_json_and_does_not_import_torch() -> None:
    content = collect(seed=3)
    assert json.loads(json.dumps(content)) == content
    assert (content["lrkit"], content["seed"]) == (__version__, 3)
    assert content["packages"]["numpy"] and content["num_cpus"] >= 1
    assert content["time_utc"].endswith("Z")


def test_git_state_is_of_lrkits_own_checkout_only(tmp_path: Path) -> None:
    """An environment may lie inside another project's repository, whose commit says nothing about lrkit."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("a")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    commit, dirty = git_state(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", commit or "") and dirty is False
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == (commit, True)
    (tmp_path / "inside").mkdir()
    assert git_state(tmp_path / "inside") == (None, None)


def test_parts_of_the_installed_package_are_those_of_pyproject() -> None:
    declared = environment.declared_requirements()
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert set(declared) == {"base", *extras}
    assert "torch" not in {requirement.name for requirement in declared["base"]}
    parts = {part.name: part for part in environment.check_parts()}
    assert parts["base"].present, parts["base"].missing
    wanted = {*parts["export"].installed, *parts["export"].missing}
    assert {"torch", "onnx"} <= wanted, "an extra that contains another needs its packages too"


def test_a_package_in_a_wrong_version_is_missing_with_both_versions_named() -> None:
    part = environment._check("train", [environment.Requirement("pytest>=9999")])
    assert not part.present
    assert re.match(r">=9999, installed is \d", part.missing["pytest"])
    assert part.command == 'pip install "lrkit[train]"'


def test_a_package_for_other_machines_is_not_missing_here() -> None:
    """NVIDIA's builder has wheels for some systems only; doctor must not ask the others to install it."""
    lines = ["pytest>=1", "of-no-machine; sys_platform == 'none'", f"of-this; sys_platform == '{sys.platform}'"]
    declared = {"dev": [environment.Requirement(line) for line in lines]}
    assert [requirement.name for requirement in environment._expand("dev", declared)] == ["pytest", "of-this"]


def test_a_folder_of_many_checkpoints_names_a_few_and_a_name_of_two_lines_is_one(tmp_path: Path) -> None:
    """`lrkit ask / x` searched the whole disk, and named each checkpoint that it found."""
    from lrkit.resources import resolve_checkpoint

    for number in range(30):
        folder = tmp_path / f"run {number:02}" / "stages" / "00\nlook"
        folder.mkdir(parents=True)
        (folder / "reasoner.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"it holds .*, more; give one of them") as caught:
        resolve_checkpoint(tmp_path)
    assert str(caught.value).count("stages") == 8 and str(caught.value).isprintable()
    with pytest.raises(CheckpointError, match="no such checkpoint") as caught:
        resolve_checkpoint("two\nlines\x1b[2J")
    assert str(caught.value).isprintable()
