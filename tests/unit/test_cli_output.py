"""What verbs print and write: names as they stand, any encoding, full and closed outputs, JSON to files and devices."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table

from lrkit.cli.shared.console import PlainTextColumn, err, out
from tests.commands import lrkit as run

ROOT = Path(__file__).resolve().parents[2]
LINE = '{"question":"q","steps":["a"],"answer":"b"}\n'


def lrkit(
    arguments: Sequence[str | bytes], shell: str = "", env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own; `shell` is what follows it, such as a redirection."""
    command = ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, "-m", "lrkit", *arguments]
    full = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **(env or {})}
    return subprocess.run(command, capture_output=True, cwd=cwd or ROOT, env=full, timeout=120)


@pytest.mark.parametrize("name", ["set [final]", "a[/x]", "[bold red]", "[link=file:///x]", ":smile:", "\\[x]"])
def test_names_are_printed_as_they_stand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rich took "[final]" for a style and left it out, and "[/x]" ended in its MarkupError."""
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / name.replace("/", "") / f"{name.replace('/', '')}.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(LINE)
    assert run("validate", str(file)) == 0
    shown = capsys.readouterr().out
    assert f"{file.name}: 1 good lines" in shown
    assert f"{file}: nothing wrong was found" in shown.replace("\n", "")
    assert run("train", "smoke", f"description='{name}'", "--dry-run", "-o", str(tmp_path / "run")) == 0
    assert name in capsys.readouterr().out


def test_control_characters_of_foreign_texts_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    escape = "\x1b]0;title\x07\x1b[2J\x9b31m\u202eabc"
    table = Table(title=escape)
    table.add_column(escape)
    table.add_row(escape)
    for console in (out(), err()):
        console.print(escape, table)
        progress = Progress(PlainTextColumn())
        progress.add_task(f"[/x] {escape}", total=1)
        console.print(PlainTextColumn().render(progress.tasks[0]))
    both = "".join(capsys.readouterr())
    assert both.count("]0;title[2J31mabc") == 10 and both.count("[/x]") == 2
    assert not set(both) & set("\x1b\x07\x9b\u202e")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-16", "ascii:replace", "cp932"])
def test_every_output_encoding_carries_every_name(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "R\u00e4ume \u65e5\u672c \udcff"
    folder.mkdir()
    (folder / "d.jsonl").write_text(LINE)
    monkeypatch.setenv("COLUMNS", "200")
    name, _, errors = encoding.partition(":")
    streams = {
        stream: io.TextIOWrapper(io.BytesIO(), encoding=name, errors=errors or "strict", write_through=True)
        for stream in ("stdout", "stderr")
    }
    for stream, wrapped in streams.items():
        monkeypatch.setattr(sys, stream, wrapped)
    assert run("validate", str(folder / "d.jsonl"), "--json", str(tmp_path / "x.json")) == 0
    assert run("validate", str(folder / "none.jsonl")) == 2
    assert json.loads((tmp_path / "x.json").read_text())["ok"] is True
    shown, said = (streams[stream].buffer.getvalue().decode(name) for stream in ("stdout", "stderr"))  # pyright: ignore
    assert "nothing wrong was found" in shown and said.startswith("error: ") and said.count("\n") == 1
    assert (r"\u65e5" in shown) == (encoding in ("cp1252", "ascii", "latin-1")), "the user's own handler is kept"


def test_an_encoding_of_the_environment_carries_every_name(tmp_path: Path) -> None:
    """Windows pipes and bare containers: the work was done, and the last line ended in UnicodeEncodeError."""
    (tmp_path / "\u65e5.jsonl").write_text(LINE)
    done = lrkit(["validate", "\u65e5.jsonl"], env={"PYTHONIOENCODING": "ascii"}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u65e5.jsonl: nothing wrong was found" in done.stdout


@pytest.mark.parametrize(
    ("shell", "code", "says"),
    [
        ("> /dev/full", 2, b"error: the disk is full"),
        (">&-", 2, b"error: standard output is closed"),
        ("| true; exit ${PIPESTATUS[0]}", 141, b""),
        ("2>&-", 0, b""),
        ("<&- >&- 2>&-", 2, b""),
    ],
)
def test_an_output_that_takes_nothing_costs_one_sentence_and_no_work(
    shell: str, code: int, says: bytes, tmp_path: Path
) -> None:
    """What was asked for is written: a full output must not cost the file that took an hour to measure."""
    file = tmp_path / "names.json"
    done = lrkit(["ls", "--json", str(file)], shell)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(says) and done.stderr.count(b"\n") == bool(says)
    assert json.loads(file.read_text())["kind"] == "ls"


def test_help_to_an_output_that_takes_nothing_leaves_no_traceback() -> None:
    done = lrkit(["--help"], "> /dev/full")
    assert done.returncode in (0, 2)
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("lib.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("can't start new thread"),
    ],
)
def test_no_memory_is_one_sentence_whoever_says_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lrkit.cli import ls

    def fails(runs: Path) -> None:
        raise error

    monkeypatch.setattr(ls, "list_everything", fails)
    assert run("ls") == 2
    assert capsys.readouterr().err == "error: there is not enough memory; free some, or ask for less\n"


def test_json_goes_to_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", "recipe", "--json", "-") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["kind"] == "ls"
    assert "recipe" in shown.err


def test_json_goes_through_links_pipes_and_devices(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("real.json")
    assert run("ls", "recipe", "--json", str(tmp_path / "link.json")) == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["kind"] == "ls"
    done = lrkit(["ls", "recipe"], f"--json >(cat > {tmp_path}/piped.json) > /dev/null; wait $!")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads((tmp_path / "piped.json").read_text())["kind"] == "ls"
    before = os.stat("/dev/null")
    assert run("ls", "recipe", "--json", "/dev/null") == 0
    assert os.stat("/dev/null").st_rdev == before.st_rdev


@pytest.mark.parametrize(
    "place",
    ["folder", "file/x.json", "file/deeper/x.json", "", "x" * 300, f"{'y' * 300}/x.json", "circle"],
)
@pytest.mark.parametrize("verb", [["ls"], ["eval", "tiny"], ["ask", "tiny", "Q"], ["doctor"], ["demo"]])
def test_a_place_that_takes_no_json_is_refused_before_the_work(
    verb: list[str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "circle").symlink_to("circle")
    assert run(*verb, "--json", place) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and "; " in shown.err and shown.err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("verb", [["profile", "tiny"], ["demo"], ["ablate", "trail-ablation"]])
def test_a_folder_that_cannot_be_is_refused_before_the_work(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    for place in ("file", "file/below"):
        assert run(*verb, "-o", str(tmp_path / place)) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1 and "; " in shown.err


def test_figures_that_took_long_are_kept_where_their_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the check and the end of an eval the disk may fill: here the folder becomes a file."""
    from lrkit.cli.shared.tables import write_json
    from lrkit.errors import FileError

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FileError, match=r"; the report is in .*x\.json instead$") as caught:
        write_json(tmp_path / "file" / "x.json", {"a": 1}, precious=True)
    kept = Path(str(caught.value).partition("the report is in ")[2].removesuffix(" instead"))
    assert json.loads(kept.read_text()) == {"a": 1}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(FileError, match="the report was printed instead"):
        write_json(tmp_path / "file" / "x.json", {"a": 1}, precious=True)
    assert json.loads(capsys.readouterr().err) == {"a": 1}


@pytest.mark.parametrize("place", [".", "..", "kept", "/"])
def test_a_copy_never_takes_the_place_of_a_folder_of_other_things(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`lrkit cp tiny . --force` emptied the working folder."""
    here = tmp_path / "here"
    (here / "kept").mkdir(parents=True)
    (here / "kept" / "thesis.txt").write_text("years of work")
    monkeypatch.chdir(here)
    assert run("cp", "tiny", place, "--force") == 2
    assert "which --force does not replace; give" in capsys.readouterr().err
    assert (here / "kept" / "thesis.txt").read_text() == "years of work"


def test_a_line_of_text_is_not_broken_at_the_terminals_width(capsys: pytest.CaptureFixture[str]) -> None:
    """A long path broken over two lines cannot be copied; a table still keeps to the width."""
    path = "/a-long-folder" * 20
    out(width=40).print(f"bundle: {path}")
    assert f"bundle: {path}\n" in capsys.readouterr().out
    table = Table("path")
    table.add_row(path)
    out(width=40).print(table)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40
