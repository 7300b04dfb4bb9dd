"""The documentation: its commands, links and names exist, the README is short, and the site builds offline."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import lrkit
from lrkit.cli.main import VERBS, app
from lrkit.config import Config
from lrkit.families.table import load_part
from tests.unit.test_docstrings import classes

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(ROOT / name / "README.md" for name in ("train", "export", "profiles", "examples")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
CURRENT = [page for page in PAGES if page.name != "log.md"]
"""Pages that say how things are. The log tells how they were: old commands stay in it."""


UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What the command line raises for arguments that it does not take; typer brings its own copy of click."""


def where(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=where)
each_current_page = pytest.mark.parametrize("page", CURRENT, ids=where)


def blocks(text: str) -> list[str]:
    """Code blocks: fenced ones, and lines that are indented by four spaces after an empty line or another such line."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:(?<=\n\n)|(?<=\A))(?: {4}[^\n]*\n)+", re.sub(r"(?ms)^```.*?^```", "", text))
    return [*fenced, *(re.sub(r"(?m)^ {4}", "", block) for block in indented)]


def commands(text: str) -> list[list[str]]:
    """The lines of all blocks that begin with a program of the project's, as words; `&&` joins two."""
    lines = [part for block in blocks(text) for line in block.splitlines() for part in line.split("&&")]
    begun = [line for line in lines if re.match(r"\s*(?:lrkit|make|python|pytest) ", line)]
    return [[word for word in shlex.split(line, comments=True) if word != "..."] for line in begun]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", text))


def parse(words: list[str]) -> None:
    """Parses a command line of lrkit as the program would, and runs nothing."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("lrkit", words)
    while hasattr(command, "resolve_command"):
        left = [*getattr(context, "_protected_args", ()), *context.args]
        name, command, left = command.resolve_command(context, left)
        context = command.make_context(name, left, parent=context)


def options_of(verb: str) -> set[str]:
    command: Any = typer.main.get_command(app)
    found = command.get_command(command.make_context("lrkit", ["ls"]), verb)
    assert found is not None, f"lrkit has no verb {verb}"
    every = [found, *getattr(found, "commands", {}).values()]
    return {
        option for part in every for parameter in part.params for option in [*parameter.opts, *parameter.secondary_opts]
    }


@each_current_page
def test_commands_of_lrkit_are_parsed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(page.read_text(encoding="utf-8")):
        if words[0] == "lrkit":
            try:
                parse(words[1:])
            except UsageError as error:
                pytest.fail(f"{where(page)}: {shlex.join(words)}: {error}")


def test_commands_in_yaml_docstrings_and_the_makefile_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [file for name in ("train", "export", "profiles") for file in (ROOT / name).rglob("*.yaml")]
    files += [*(ROOT / "lrkit").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), ROOT / "Makefile"]
    found = [
        (file, line)
        for file in files
        for line in re.findall(
            r"^(?:#| {4}|\t\$\(BIN\)/) *(lrkit [a-z]+ [^\n]*)$", file.read_text(encoding="utf-8"), re.M
        )
    ]
    assert len(found) > 40
    monkeypatch.chdir(tmp_path)
    for file, line in found:
        try:
            parse(shlex.split(line.rstrip("\\"), comments=True)[1:])  # a long line goes on below
        except UsageError as error:
            pytest.fail(f"{where(file)}: {line}: {error}")


def test_the_sweep_sees_the_commands() -> None:
    found = [words for page in CURRENT for words in commands(page.read_text(encoding="utf-8"))]
    assert len([words for words in found if words[0] == "lrkit"]) > 60
    assert len([words for words in found if words[0] == "make"]) >= 6
    with pytest.raises(UsageError, match="No such option"):
        parse(["ask", "tiny", "question", "--no-such-option"])


@each_current_page
def test_verbs_and_options_in_a_sentence_exist(page: Path) -> None:
    for span in spans(page.read_text(encoding="utf-8")):
        words = span.split()
        if words[0] != "lrkit" or len(words) < 2 or not re.fullmatch(r"[a-z][a-z-]*", words[1]):
            continue
        named = {word.split("=")[0] for word in words[2:] if re.match(r"--[a-z]", word)} - {"--help"}
        assert named <= options_of(words[1]), f"{where(page)}: {span}"


@each_current_page
def test_make_targets_scripts_and_tests_exist(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    for words in [*commands(text), *(span.split() for span in spans(text))]:
        if words[0] == "make" and len(words) > 1:
            assert words[1] in targets, f"{where(page)}: {words}"
        if words[0] == "python" and len(words) > 1 and words[1].startswith("benchmarks/"):
            script = (ROOT / words[1]).read_text(encoding="utf-8")
            assert all(f'"{word}"' in script for word in words if word.startswith("--")), f"{where(page)}: {words}"
        if words[0] == "pytest":
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), f"{where(page)}: {words}"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@each_current_page
def test_files_that_are_named_exist(page: Path) -> None:
    """But for placeholders, as FAMILY.py."""
    folders = "lrkit|tests|benchmarks|docs|profiles|export|examples|train"
    named = re.findall(rf"`((?:{folders})/[\w./-]*[\w/])`", page.read_text(encoding="utf-8"))
    placeholders = re.compile(r"(?<![A-Za-z])[A-Z]{4,}(?![A-Za-z]|\.md)")
    assert [name for name in named if not placeholders.search(name) and not (ROOT / name).exists()] == []


@each_current_page
def test_members_of_classes_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"(?<!`)`([A-Z]\w*[a-z]\w*)\.(\w+)(?:\([^`]*\))?`(?!`)", page.read_text(encoding="utf-8"))
    wrong = [
        pair for pair in named if pair[1] not in classes().get(pair[0], ()) and pair[1] not in ("md", "py", "json")
    ]
    assert wrong == []


@each_current_page
def test_python_in_the_pages_uses_names_that_exist(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lrkit":
                module = import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names), block


def test_words_that_nobody_says_are_not_written() -> None:
    files = [*CURRENT, *(file for name in ("lrkit", "benchmarks", "examples") for file in (ROOT / name).rglob("*.py"))]
    found = [(where(file), *re.findall(r"\b(?:anew|for ever|by turns)\b", file.read_text("utf-8"))) for file in files]
    assert [words for words in found if len(words) > 1] == []


def test_the_readme_is_short_and_begins_with_the_set_up() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert [words[:2] for words in commands(text)[:2]] == [["make", "demo"], ["make", "test"]]
    assert text.index("make test") < text.index("docs/images/serve.png") < text.index("## ")


def test_the_page_on_the_command_line_has_every_verb() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert {words[1] for words in commands(page)} == set(VERBS)


def test_every_public_name_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)}
    for name in set(lrkit.__all__) - {"__version__"}:
        assert name in documented or issubclass(getattr(lrkit, name), Exception), f"docs/api.md lacks {name}"


def test_every_package_has_a_row() -> None:
    page = (ROOT / "docs" / "packages.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name != "dev"}
    needed = [*project["dependencies"], *(need for needs in extras.values() for need in needs)]
    names = {re.split(r"[\[<>=;]", need)[0] for need in needed} - {"lrkit"}
    assert len(names) > 15
    assert [name for name in sorted(names) if name not in page] == []


def test_every_value_of_a_file_is_documented() -> None:
    page = (ROOT / "docs" / "values.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: (lrkit\.[\w.]+)\.(\w+)$", page, re.MULTILINE)
    modules = {module for module, _ in named}
    assert {"lrkit.train.recipe", "lrkit.contract.settings", "lrkit.export.targets.target"} < modules
    for module in modules:
        classes = [value for value in vars(import_module(module)).values() if isinstance(value, type)]
        own = {value.__name__ for value in classes if issubclass(value, Config) and value.__module__ == module}
        assert own == {name for other, name in named if other == module}, module


def test_every_part_of_a_family_is_documented() -> None:
    page = (ROOT / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    parts = re.findall(r"^\| `(\w+)` \| an? `(\w+)`", page, re.MULTILINE)
    assert len(parts) == 7
    told = ast.get_docstring(ast.parse((ROOT / "lrkit/families/table.py").read_text(encoding="utf-8"))) or ""
    assert re.findall(r"^ {4}(\w+) +an? (?:class, )?`(\w+)`", told, re.MULTILINE) == parts
    assert all(load_part("qwen2_vl", part) is not None for part, _ in parts)


class Requests(HTMLParser):
    """What a browser would load for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "link") and values.get("rel") != "canonical":
            self.addresses += [value for value in (values.get("src"), values.get("href")) if value]


def test_the_site_builds_and_asks_nothing_of_other_servers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md")))  # and the page for what is not found
    for page in pages:
        found = Requests()
        found.feed(page.read_text(encoding="utf-8"))
        assert found.addresses and [address for address in found.addresses if "//" in address] == [], page.name
    styles = list((tmp_path / "site").rglob("*.css"))
    assert styles and not any(re.search(r"@import|url\(['\"]?(?:https?:)?//", sheet.read_text()) for sheet in styles)


def test_every_decision_is_a_short_page_with_a_row() -> None:
    pages = {path.name for path in (ROOT / "docs" / "decisions").glob("*.md")} - {"index.md"}
    index = (ROOT / "docs" / "decisions" / "index.md").read_text(encoding="utf-8")
    assert len(pages) >= 14
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == pages
    assert all(len((ROOT / "docs/decisions" / name).read_text().splitlines()) <= 40 for name in pages)
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["strict"] is True and settings["theme"]["font"] is False


def test_figures_in_the_sentences_of_the_readme_are_those_of_the_tables() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in (ROOT / "docs/results.md").read_text().splitlines()]
    rows = {(row[0], row[1], row[3]): row for row in lines if len(row) == 9}
    cpu = next(row for (name, device, _), row in rows.items() if (name, device) == ("qwen2-vl-2b", "AMD EPYC"))
    gpu = rows["qwen2-vl-2b", "NVIDIA H200", "yes"]
    assert cpu[6] == gpu[6]
    said = rf"steps fall {cpu[6]}-fold; time falls {cpu[7]}-fold on a CPU and {gpu[7]}-fold on an H200"
    assert said in " ".join(readme.split())
    main = next(row for row in lines if row[0] == "`trail:main`")
    words, latent = main[4].split(" / ")
    assert f"Steps fall {float(words) / float(latent):.0f}-fold" in readme
