"""Files and folders written whole or not at all: links, devices, full disks, kills; strict JSON; locks."""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lrkit import files
from lrkit.errors import BundleError, FileError, UserError, os_sentence
from lrkit.files import parse_json, read_json, replacing, write_bytes, write_json, write_text
from lrkit.folders import locked, staged_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_with_its_mode_and_nothing_is_left_over(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "report.json"
    write_json(file, {"a": 1})
    file.chmod(0o640)
    before = file.stat().st_ino
    write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 2}
    assert (file.stat().st_mode & 0o777, file.stat().st_ino != before) == (0o640, True)
    assert names(file.parent) == ["report.json"]


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real = tmp_path / "there" / "real.json"
    for name, points_to in (("direct", real), ("relative", Path("there/real.json")), ("twice", tmp_path / "direct")):
        (tmp_path / name).symlink_to(points_to)
        write_text(tmp_path / name, name)
        assert (tmp_path / name).is_symlink()
        assert real.read_text() == name
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(FileError, match="circle"):
        write_text(tmp_path / "circle", "x")


def test_pipes_and_devices_are_written_through(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_bytes(pipe, b"through")
    reader.join()
    assert got == [b"through"]
    assert pipe.is_fifo()
    null = os.stat("/dev/null")
    write_text("/dev/null", "gone")
    assert os.stat("/dev/null").st_ino == null.st_ino
    assert names(tmp_path) == ["pipe"]


def test_standard_output_is_written_on_its_descriptor(tmp_path: Path) -> None:
    """/dev/stdout of a redirected process is an ordinary file: put in its place, a new file would lose the rest."""
    out = tmp_path / "out.txt"
    program = (
        "from lrkit.files import write_text\nprint('one', flush=True); write_text('/dev/stdout', 'two\\n'); print(3)"
    )
    with out.open("w") as stream:
        subprocess.run([sys.executable, "-c", program], stdout=stream, check=True)
    assert out.read_text() == "one\ntwo\n3\n"


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "state"
    write_text(file, "old")
    with pytest.raises(ZeroDivisionError), replacing(file) as place:
        place.write_text("half")
        _ = 1 / 0
    with pytest.raises(FileError, match="is a folder"):
        write_text(tmp_path, "x")
    with pytest.raises(FileError, match=r"a file of that name|a part of the path"):
        write_text(file / "below", "x")
    with pytest.raises(FileError, match="disk is full"):
        write_text("/dev/full", "x" * 100_000)
    assert (file.read_text(), names(tmp_path)) == ("old", ["state"])


def test_a_limit_on_file_sizes_is_one_sentence(tmp_path: Path) -> None:
    """In a process of its own: `ulimit -f` cannot be raised again."""
    program = (
        "import resource, sys, pathlib\n"
        "from lrkit.files import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_bytes(sys.argv[1], bytes(2000))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    assert resource.RLIMIT_FSIZE
    file = tmp_path / "big"
    file.write_text("old")
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"FileError {file}: it is larger than the system allows")
    assert (file.read_text(), names(tmp_path)) == ("old", ["big"])


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for left in (f".writing-{gone.pid}-0-a.json", f".writing-{gone.pid}-1-b.json", f".writing-{os.getppid()}-0-a.json"):
        (tmp_path / left).write_text("half")
    write_text(tmp_path / "a.json", "whole")
    # Another name's leftovers and those of a process that runs are not ours.
    assert names(tmp_path) == sorted(["a.json", f".writing-{gone.pid}-1-b.json", f".writing-{os.getppid()}-0-a.json"])


def test_long_names_fit(tmp_path: Path) -> None:
    write_text(tmp_path / ("ä" * 120 + ".json"), "x")
    with pytest.raises(FileError, match="the name is too long"):
        write_text(tmp_path / ("n" * 300), "x")
    with pytest.raises(FileError):
        write_text(tmp_path / "nul\0", "x")


def test_folders_take_their_place_at_once(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with staged_folder(target) as place:
        (place / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(FileError, match="not empty"), staged_folder(target):
        pass
    with pytest.raises(KeyboardInterrupt), staged_folder(target, replace=True) as place:
        (place / "b").write_text("half")
        raise KeyboardInterrupt
    assert names(target) == ["a"]
    with staged_folder(target, replace=True) as place:
        (place / "b").write_text("2")
    assert (names(target), names(tmp_path)) == (["b"], ["bundle"])


def test_where_names_cannot_be_exchanged_a_kill_between_the_renames_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrkit.folders._exchange", lambda one, other: False)
    target = tmp_path / "bundle"
    for version in ("1", "2"):
        with staged_folder(target, replace=True) as place:
            (place / "version").write_text(version)
    assert ((target / "version").read_text(), names(tmp_path)) == ("2", ["bundle"])
    target.rename(tmp_path / ".old-bundle")  # as the kill leaves it
    with pytest.raises(ZeroDivisionError), staged_folder(target, replace=True):
        _ = 1 / 0
    assert (target / "version").read_text() == "2"


def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hold = (
        "import sys; from lrkit.folders import locked\n"
        "with locked(sys.argv[1], 'trains in'): print(1, flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen([sys.executable, "-c", hold, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout is not None and first.stdin is not None
    first.stdout.readline()
    with pytest.raises(UserError, match="another process trains in it; wait"), locked(folder, "trains in"):
        pass
    first.kill()
    first.wait()
    first.stdin.close()
    first.stdout.close()
    with locked(folder, "trains in"):
        assert names(tmp_path) == [".run.lock"]
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "holds a list where a mapping belongs"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": -Infinity}', "holds -Infinity"),
        ('{"a": 1e999}', "too large"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "nested more than"),
        ('{"a": ' + "[" * 100_000, "nested more than"),
        ('{"a": "\\ud83d"}', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
    ],
)
def test_json_is_read_strictly(text: str, says: str) -> None:
    with pytest.raises(BundleError, match=says) as caught:
        parse_json(text, "x.json", BundleError)
    assert str(caught.value).startswith("x.json: ")
    assert "\n" not in str(caught.value)


def test_json_files_are_bounded_and_ordinary(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_bytes(b"\xef\xbb\xbf" + '{"name": "größer", "pair": "\\ud83d\\ude00", "n": 1.5}'.encode())
    assert read_json(good) == {"name": "größer", "pair": "😀", "n": 1.5}
    assert read_json(tmp_path / "gone.json", missing_ok=True) == {}
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b'{"a": "\xe9"}')
    faults = {"pipe": "no ordinary file", "latin": "not UTF-8", "gone": "no such file", ".": "no ordinary file"}
    for name, says in faults.items():
        with pytest.raises(UserError, match=says):
            read_json(tmp_path / name)
    with pytest.raises(UserError, match="at most 10"):
        read_json(good, max_bytes=10)


def test_digests_are_those_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == ("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3)


def test_a_folder_that_could_not_be_copied_is_told_by_its_first_file(tmp_path: Path) -> None:
    # On a full disk the copy's own error was printed: a list of tuples with both paths, twice.
    (tmp_path / "to").mkdir()
    for name in ("a", "b"):
        (tmp_path / "from" / name).mkdir(parents=True)
        (tmp_path / "to" / name).write_text("x")
    with pytest.raises(shutil.Error) as caught:
        shutil.copytree(tmp_path / "from", tmp_path / "to", dirs_exist_ok=True)
    told = {f"{tmp_path / 'to' / name}: a file of that name is there already; give another name" for name in "ab"}
    assert os_sentence(caught.value) in told
