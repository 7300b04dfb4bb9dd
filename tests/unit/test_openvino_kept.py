"""Compiled programs that are kept: never another program's answer, no damaged or foreign file, within bounds."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrkit.errors import UserError
from lrkit.runtime.engines.openvino import kept
from lrkit.runtime.engines.openvino.compiled import compile_graph
from lrkit.runtime.engines.openvino.library import core
from lrkit.runtime.engines.openvino.options import Numbers, OpenVinoOptions
from tests.preflight.make import save

pytest.importorskip("openvino", reason='needs the package openvino: pip install "lrkit[openvino]"')


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices for which something was compiled, one entry each time."""
    seen: list[str] = []

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(core(), name)

        def compile_model(self, model: Any, device: str, given: Any) -> Any:
            seen.append(device)
            return core().compile_model(model, device, given)

    monkeypatch.setattr("lrkit.runtime.engines.openvino.compiled.core", Counted)
    return seen


def answer(number: int, folder: Path, cache: bool | Path | None, threads: int = 1) -> float:
    """Of a program that adds a number. Its file always has the same name, size and time."""
    text = f"(float[4] x) => (float[4] y) <float k = {{{number}}}> {{ [add] y = Add(x, k) }}"
    file = save(text, 21, folder / "graph.onnx")
    os.utime(file, (1, 1))
    graph = compile_graph(file, None, OpenVinoOptions(cache=cache, threads=threads), Numbers("f32"))
    return float(graph.run(["y"], {"x": np.zeros(4, np.float32)})[0][0])


def blobs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ovblob"), key=lambda file: file.stat().st_mtime_ns)


def test_each_program_and_way_to_run_it_is_compiled_once(tmp_path: Path, compiles: list[str]) -> None:
    cache = tmp_path / "cache" / "deep"
    assert [answer(number, tmp_path, cache) for number in (2, 3, 2, 3)] == [2, 3, 2, 3]
    assert len(compiles) == len(blobs(cache)) == 2
    assert answer(2, tmp_path, cache, threads=2) == 2 and len(compiles) == 3
    assert answer(2, tmp_path, None) == 2 and len(compiles) == 4 and len(blobs(cache)) == 3


@pytest.mark.parametrize("damage", ["emptied", "cut", "one bit", "other", "no head"])
def test_a_damaged_file_is_removed_and_made_again(tmp_path: Path, compiles: list[str], damage: str) -> None:
    """OpenVINO itself answers by changed numbers, without a word."""
    answer(2, tmp_path, tmp_path)
    answer(3, tmp_path, tmp_path)
    file, other = blobs(tmp_path)  # the first is that of 2
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[-1] ^= 1
    bad = {"emptied": b"", "cut": content[:-9], "one bit": bytes(flipped), "other": other.read_bytes()[:-1] + b"x"}
    file.write_bytes(bad.get(damage, content[40:]))
    assert [answer(2, tmp_path, tmp_path), answer(2, tmp_path, tmp_path)] == [2, 2]
    assert len(compiles) == 3 and file.stat().st_size > len(content) - 100, "made again"


def test_a_file_with_a_right_head_that_is_no_program(tmp_path: Path, compiles: list[str]) -> None:
    import hashlib

    answer(2, tmp_path, tmp_path)
    (file,) = blobs(tmp_path)
    file.write_bytes(b"lrkitov1" + hashlib.sha256(b"nonsense" * 99).digest() + b"nonsense" * 99)
    assert answer(2, tmp_path, tmp_path) == 2 and len(compiles) == 2


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights are of another kind here")
def test_what_others_may_write_is_not_used(tmp_path: Path, compiles: list[str]) -> None:
    answer(2, tmp_path, tmp_path / "own")
    (file,) = blobs(tmp_path / "own")
    file.chmod(0o666)
    assert answer(2, tmp_path, tmp_path / "own") == 2 and len(compiles) == 2
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(UserError, match="other users may write there"):
        answer(2, tmp_path, tmp_path / "shared")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("a\0b")):
        with pytest.raises(UserError) as caught:
            answer(2, tmp_path, place)
        assert "\n" not in str(caught.value)


def test_what_was_used_least_recently_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(2, tmp_path, tmp_path)
    (first,) = blobs(tmp_path)
    answer(3, tmp_path, tmp_path)
    second = blobs(tmp_path)[-1]
    os.utime(first, (9, 9))
    os.utime(second, (5, 5))
    answer(2, tmp_path, tmp_path)  # used now
    monkeypatch.setattr(kept, "MOST_BYTES", 5 * first.stat().st_size // 2)
    answer(4, tmp_path, tmp_path)
    assert first.exists() and not second.exists() and len(blobs(tmp_path)) == 2
    monkeypatch.setattr(kept, "MOST_BYTES", 10)
    assert answer(5, tmp_path, tmp_path) == 5 and len(blobs(tmp_path)) == 2, "larger than all room: not kept"


def test_the_usual_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    assert answer(2, tmp_path, True) == 2 and len(blobs(tmp_path / "here" / "lrkit" / "openvino")) == 1
    assert answer(3, tmp_path, False) == 3 and len(blobs(tmp_path / "here" / "lrkit" / "openvino")) == 1
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert kept.usual_folder() == Path.home() / ".cache" / "lrkit" / "openvino"
