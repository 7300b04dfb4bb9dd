"""What verbs take: few options each, grouped; wrong use is one sentence; the documents name options that there are."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from lrkit.cli.main import VERBS, app, main
from lrkit.cli.shared.old_spellings import modern
from lrkit.cli.shared.options import COMMON, WHERE

ROOT = Path(__file__).resolve().parents[2]
MOST_OWN_OPTIONS = 12
DOCUMENTS = ("README.md", "*/README.md", "docs/**/*.md", "export/*/*.yaml", "profiles/*/*.yaml", "profiles/*/*.md",
             "examples/*.py", "benchmarks/*.py", ".github/workflows/*.yml")  # fmt: skip


def command_of(verb: str) -> Any:
    group: Any = typer.main.get_command(app)
    return group.get_command(None, verb)


def options_of(verb: str) -> list[Any]:
    return [param for param in command_of(verb).params if param.param_type_name == "option"]


def test_no_verb_has_more_than_a_dozen_options_of_its_own() -> None:
    """`lrkit export` and `lrkit profile` once had 25 each, and five jobs behind them."""
    own = {verb: [option.name for option in options_of(verb) if option.rich_help_panel is None] for verb in VERBS}
    assert len(own) >= 16 and sum(map(len, own.values())) > 50
    assert {verb: names for verb, names in own.items() if len(names) > MOST_OWN_OPTIONS} == {}


def test_shared_options_are_named_and_grouped_alike_in_every_verb() -> None:
    groups: dict[str, set[str | None]] = {}
    for verb in VERBS:
        for option in options_of(verb):
            groups.setdefault(option.opts[0], set()).add(option.rich_help_panel)
    for name in ("--device", "--dtype", "--provider", "--threads", "--engine-option", "--cuda-graphs"):
        assert groups[name] == {WHERE}, name
    for name in ("--json", "--download"):
        assert groups[name] == {COMMON}, name


def test_help_shows_own_options_before_shared_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["profile", "--help"])
    shown = capsys.readouterr().out
    places = [shown.index(text) for text in ("Usage: ", "--suite", f"{WHERE}:", "--device", f"{COMMON}:", "--json")]
    assert places == sorted(places)
    assert "Usage: lrkit profile [OPTIONS] MODEL" in shown


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("ask", "lrkit ask: MODEL is missing; use it as in lrkit ask [OPTIONS] MODEL [QUESTION]..."),
        ("ask tiny", "QUESTION is missing; give one, or a file of questions as --data"),
        ("train --dry-run", "lrkit train: RECIPE is missing; use it as in lrkit train [OPTIONS] RECIPE [KEY=VALUE]..."),
        ("ls --jsn x", "lrkit ls has no option --jsn; did you mean '--json'?"),
        ("export tiny --forced", "lrkit export has no option --forced; did you mean '--force'?"),
        ("doctor --nonsense", "lrkit doctor has no option --nonsense; `lrkit doctor --help` lists those that it has"),
        ("--nonsense", "lrkit has no option --nonsense; `lrkit --help` lists those that it has"),
        ("eval tiny --samples", "--samples was given without a value; write one behind it"),
        ("export tiny --force=3", "--force takes no value; write it alone"),
        ("cp a b c", "use it as in lrkit cp [OPTIONS] NAME [DEST]"),
        ("profile", "MODEL... [KEY=VALUE] is missing; use it as in lrkit profile [OPTIONS] MODEL... [KEY=VALUE]..."),
        ("sweep", "MODEL... SETTING=V1,V2 is missing; use it as in lrkit sweep [OPTIONS] MODEL... SETTING=V1,V2..."),
        ("compare a.json", "lrkit compare: AFTER is missing; use it as in lrkit compare [OPTIONS] BEFORE AFTER"),
    ],
)
def test_wrong_use_is_one_sentence(given: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(given.split())
    captured = capsys.readouterr()
    assert left.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.rstrip().endswith(says)
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("eval tiny --samples x", ("lrkit eval: --samples", "x", "integer")),
        ("eval tiny --samples 0", ("lrkit eval: --samples", "0", "1")),
        ("ask tiny q --timeout soon", ("lrkit ask: --timeout", "soon", "number")),
        ("ls nonsense", ("lrkit ls: KIND", "'nonsense' is not one of", "'recipe'")),
    ],
)
def test_a_value_that_cannot_be_is_named(
    given: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(given.split())
    said = capsys.readouterr().err
    assert left.value.code == 2 and len(said.splitlines()) == 1 and "Value error" not in said
    assert all(part in said for part in parts) and said.rstrip().endswith(" --help` says what it takes")


def commands() -> list[tuple[str, list[str]]]:
    """Every command line of the documents, without what only stands for something."""
    found: list[tuple[str, list[str]]] = []
    for file in sorted({file for pattern in DOCUMENTS for file in ROOT.glob(pattern)}):
        text = file.read_text(encoding="utf-8").replace("\\\n#", " ").replace("\\\n", " ")
        for line in re.findall(r"(?:^(?:#| {4}|`).*?\b|`)lrkit ([a-z]+ [^`\n]*)", text, re.MULTILINE):
            words = re.split(r"\s{2,}#|\s+\(|\s+&&", line)[0]
            if "..." in words:
                continue
            try:
                found.append((file.relative_to(ROOT).as_posix(), shlex.split(words)))
            except ValueError:  # a sentence with an apostrophe
                continue
    return found


def test_every_command_in_the_documents_takes_the_options_that_it_is_given() -> None:
    """Those of reports too, which were made with the spellings of their day."""
    asked = [(file, words) for file, words in commands() if words[0] in VERBS and len(words) > 1]
    assert len(asked) > 60 and len({file for file, _ in asked}) > 12
    wrong: list[str] = []
    for file, words in asked:
        verb, *rest = modern(words)
        command = command_of(verb)
        try:
            command.make_parser(typer.Context(command)).parse_args(rest)
        except Exception as error:
            if "requires an argument" not in str(error):  # where a line ends within the command
                wrong.append(f"{file}: lrkit {shlex.join(words)}: {error}")
    assert wrong == []
