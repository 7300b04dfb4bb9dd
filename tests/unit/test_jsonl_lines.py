"""Lines of a data file from anywhere: each bad one is named with one reason, and the scan always reaches the end."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from lrkit.data import jsonl
from lrkit.data.jsonl import JsonlScan, check_jsonl, read_jsonl
from lrkit.errors import DataError

GOOD = {"image": "a.png", "question": "Where now ?", "steps": ["go to 1 ."], "answer": "2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (80, 32)).save(tmp_path / "a.png")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing follows")
    Image.new("L", (2000, 3)).save(tmp_path / "ribbon.png")
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


def scan(folder: Path, *lines: bytes | str | dict[str, object]) -> JsonlScan:
    path = folder / "data.jsonl"
    raw = [line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
           for line in lines]  # fmt: skip
    path.write_bytes(b"\n".join(raw) + b"\n")
    return check_jsonl(path)


def changed(**values: object) -> dict[str, object]:
    return {**GOOD, **values}


BAD = {
    "half a surrogate": ('{"question": "\\ud83d", "steps": [], "answer": "a"}', "half a surrogate pair"),
    "half of one in a key": ('{"\\udc00": 1}', "half a surrogate pair"),
    "digits": ('{"question": "q", "steps": [], "answer": ' + "7" * 4400 + "}", "holds a number of 4400 digits"),
    "large float": ('{"question": "q", "steps": [], "answer": 1e999}', "too large"),
    "not a number": ('{"question": "q", "steps": [], "answer": NaN}', "no JSON number"),
    "large id": (changed(id=10**30), "id is a number; give a text"),
    "deep": ('{"question": ' + '{"a":' * 90 + "1" + "}" * 91, "nested more than 64 deep"),
    "very deep": ('{"question": ' + "[" * 200_000, "nested more than 64 deep"),
    "long name": (changed(image="n" * 300 + ".png"), "too long for a path"),
    "long path": (changed(image="folder/" * 3000 + "a.png"), "is not there"),
    "base64": (changed(image="iVBORw0KGgo" * 4000), "where it is base64, save the picture"),
    "NUL in a path": (changed(image="a\0.png"), "holds a NUL character"),
    "a pipe as a picture": (changed(image="pipe.png"), "is no ordinary file"),
    "a folder as a picture": (changed(image="."), "is no ordinary file"),
    "a damaged picture": (changed(image="cut.jpg"), "damaged or cut off"),
    "a ribbon": (changed(image="ribbon.png"), "the longer side may be at most 200 times the shorter"),
    "an address": (changed(image="data:image/png;base64," + "A" * 9000), "is no path"),
    "escape": (changed(question="a \x1b[31mred\x1b[0m word"), "control character U+001B at place 3"),
    "bell in a step": (changed(steps=["go", "ring \x07"]), "steps[1] holds the control character U+0007"),
    "long key": (json.dumps({"k" * 70_000: 1}), "unknown key"),
    "many keys": (json.dumps({f"key{i}": i for i in range(5000)}), "unknown key 'key0'"),
    "many pictures": (changed(image=["a.png"] * 65), "image lists 65 pictures; give at most 64"),
    "not UTF-8": (b'{"question": "caf\xe9"}', "is not UTF-8 (byte 17)"),
    "NUL bytes": ('{"question": "a"}'.encode("utf-16-le"), "as a file in UTF-16 does"),
    "binary": (bytes(range(128, 256)), "is not UTF-8 (byte 0)"),
    "two objects": ('{"a": 1} {"b": 2}', "is not valid JSON"),
    "a text": ('"word"', "holds a text; write an object"),
}


@pytest.mark.parametrize("what", BAD)
def test_one_bad_line_is_named_with_a_reason_and_the_scan_goes_on(folder: Path, what: str) -> None:
    """Some of these once ended the scan, in a traceback or with blame on the whole file."""
    line, reason = BAD[what]
    found = scan(folder, changed(id="1"), line, changed(id="3"), changed(id="4", image="gone.png"))
    assert [sample.id for sample in found.samples] == ["1", "3"]
    first, last = found.problems
    assert first.startswith(f"{folder / 'data.jsonl'}:2: ") and reason in first
    assert last.startswith(f"{folder / 'data.jsonl'}:4: image 'gone.png' is not there")
    assert len(first) < 1500 and first.isprintable()


def test_line_ends_and_tabs_belong_to_texts(folder: Path) -> None:
    found = scan(folder, changed(question="one\ntwo\tthree\r\nfour", steps=["\u4ed6\u8bf4\u3002 \U0001f680"]))
    assert found.problems == [] and len(found.samples) == 1


def test_a_line_that_is_too_long_is_passed_over_without_being_held(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    seen: list[int] = []
    path = folder / "data.jsonl"
    long = json.dumps(changed(image="x" * 5_000_000)).encode()
    good = [json.dumps(changed(id=str(number))).encode() for number in range(2)]
    exact = json.dumps(changed(id="exact", answer="a")).encode()
    exact = exact[:-2] + b"a" * (1000 - 1 - len(exact)) + exact[-2:]  # with its line end, 1000 bytes
    path.write_bytes(b"\n".join([good[0], long, exact, good[1], long]))
    found = check_jsonl(path, advance=seen.append)
    assert [sample.id[:5] for sample in found.samples] == ["0", "exact", "1"]
    assert [problem.split(" ")[0] for problem in found.problems] == [f"{path}:2:", f"{path}:5:"]
    assert f"has {len(long) + 1} bytes" in found.problems[0]
    assert sum(seen) == path.stat().st_size


def test_what_is_no_ordinary_utf8_file_is_refused_at_once(folder: Path) -> None:
    utf16 = folder / "utf16.jsonl"
    utf16.write_text(json.dumps(GOOD), encoding="utf-16")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "folder.jsonl").mkdir()
    for path, says in (
        (utf16, "is in UTF-16"),
        (folder / "pipe.jsonl", "is a pipe"),
        (folder / "folder.jsonl", "is a folder"),
        (Path("/dev/zero"), "is a device"),
        (Path("a\0b.jsonl"), "no path of a file"),
        (folder / ("n" * 300), "too long"),
        (folder / "a.png" / "b.jsonl", "not a folder"),
    ):
        with pytest.raises(DataError, match=says) as error:
            read_jsonl(path)
        assert "\n" not in str(error.value)


def test_a_repeated_id_of_any_length_is_cut_in_the_message(folder: Path) -> None:
    found = scan(folder, changed(id="i" * 100_000), changed(id="i" * 100_000))
    assert "was used in line 1" in found.problems[0] and len(found.problems[0]) < 400
