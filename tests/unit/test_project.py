"""What makes a checkout a project: workflows that run what is there, a typed wheel, a source archive with its tests."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import lrkit
from lrkit.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def commands(workflow: Path) -> list[str]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_there_is(workflow: Path) -> None:
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    text = "\n".join(commands(workflow))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", text)) <= targets
    assert set(re.findall(r"bin/lrkit (\w+)", text)) <= set(VERBS)


def test_workflows_check_test_and_install() -> None:
    said = "\n".join(command for workflow in WORKFLOWS for command in commands(workflow))
    pieces = ("make check", "make test", "make docs", "make coverage", "python -m build", "twine check",
              "bin/lrkit validate bundle", "bin/lrkit ask bundle", "tests/unit/test_source_archive.py")  # fmt: skip
    for piece in pieces:
        assert piece in said
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = [name.rpartition(" ")[2] for name in project["classifiers"] if ":: 3." in name]
    assert matrix["python"] == pythons
    torch = next(need for need in project["optional-dependencies"]["train"] if need.startswith("torch"))
    oldest = re.search(r">=([\d.]+)", torch)
    assert oldest is not None and matrix["include"][0]["torch"].startswith(oldest[1])


def test_the_source_archive_holds_what_tests_read() -> None:
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"][
        "include"
    ]
    for name in (".ci", ".github", "benchmarks", "docs", "examples", "export", "lrkit", "profiles", "tests", "train"):
        assert f"/{name}" in included
        assert (ROOT / name).is_dir()


def test_the_package_is_typed_and_can_be_cited() -> None:
    assert (ROOT / "lrkit" / "py.typed").is_file()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == lrkit.__version__
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Homepage"] == cited["repository-code"]
    assert all(url.startswith(urls["Homepage"]) for url in urls.values())


def test_forms_for_issues_are_forms() -> None:
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) == 2
    for form in forms:
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(content)
        assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in content["body"])
