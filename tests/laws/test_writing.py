"""A file that is written is the old one or the new one, whatever fails and whenever; nothing is left beside it.

The calls to the system that a writing makes are counted first; then one of them fails, or the process is interrupted
there.
"""

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrkit.errors import FileError
from lrkit.files import WRITING, replacing, write_bytes, write_json, write_text

CALLS = ("open", "fsync", "replace", "chmod", "chown")
OLD, NEW = b"the old content\n" * 40, b"what is new\n" * 90


class Interrupted(BaseException):
    """As Ctrl-C is, outside `Exception`."""


@contextmanager
def failing(at: int | None, failure: BaseException | None) -> Iterator[list[str]]:
    """Notes the calls; number `at` fails in place of being made, and of a write half is made."""
    made: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if len(made) - 1 == at and failure is not None:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                raise failure
            return real(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(mock.patch.object(os, name, counted(name, getattr(os, name))))
        stack.enter_context(mock.patch.object(Path, "write_bytes", counted("write", Path.write_bytes)))
        yield made


class Place:
    """A folder with what may be there before: nothing, a file, or a link to one."""

    def __init__(self, root: Path, before: str):
        self.root, self.path = root, root / "some" / "deep.er" / "report.json"
        self.holder = self.path
        if before != "nothing":
            self.path.parent.mkdir(parents=True)
        if before == "link":
            self.holder = root / "kept" / "elsewhere.json"
            self.holder.parent.mkdir()
            self.path.symlink_to(self.holder)
        if before != "nothing":
            self.holder.write_bytes(OLD)
            self.holder.chmod(0o640)

    def content(self) -> bytes | None:
        return self.path.read_bytes() if self.path.exists() else None

    def files(self) -> set[Path]:
        return {path for path in self.root.rglob("*") if not path.is_dir()}


BEFORES = ["nothing", "file", "link"]
befores = st.sampled_from(BEFORES)
NUMBERS = ["ENOSPC", "EIO", "EACCES", "EROFS", "EDQUOT", "EPERM", "EBUSY", "EXDEV", "interrupted"]


@pytest.mark.parametrize("before", BEFORES)
@pytest.mark.parametrize("number", NUMBERS)
def test_the_old_or_the_new_and_no_leftovers(before: str, number: str, tmp_path: Path) -> None:
    """Of every call in turn, for there are few."""
    sound = Place(tmp_path / "sound", before)
    with failing(None, None) as calls:
        write_bytes(sound.path, NEW)
    assert sound.content() == NEW and {"open", "write", "fsync", "replace"} <= set(calls)
    for at in range(len(calls)):
        place = Place(tmp_path / str(at), before)
        there, old = place.files(), place.content()
        code = getattr(errno, number, None)
        failure = Interrupted() if code is None else OSError(code, os.strerror(code))
        try:
            with failing(at, failure):
                write_bytes(place.path, NEW)
        except FileError as error:
            assert code is not None and "\n" not in str(error)
            assert place.content() in (old, NEW)
        except Interrupted:
            assert code is None and place.content() in (old, NEW)
        else:
            assert place.content() == NEW, "no failure was told"
        assert place.files() - there <= {place.path}, "what was half written is gone"
        assert place.path.is_symlink() == (before == "link")
        write_bytes(place.path, NEW * 2)
        assert place.content() == NEW * 2, "the place can be written again"


@given(befores)
def test_mode_and_link_of_the_old_file_stay(before: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(Path(scratch), before)
        write_text(place.path, "é")
        assert place.path.read_bytes() == "é".encode() and place.path.is_symlink() == (before == "link")
        if before != "nothing":
            assert stat.S_IMODE(place.holder.stat().st_mode) == 0o640


@given(befores, st.sampled_from([ValueError("a value"), RuntimeError("No space left on device"), Interrupted()]))
def test_a_writer_that_gives_up_half_way_changes_nothing(before: str, failure: BaseException) -> None:
    """torch and safetensors raise RuntimeErrors where the disk is full."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(Path(scratch), before)
        there, old = place.files(), place.content()
        with pytest.raises((type(failure), FileError)), replacing(place.path) as staging:
            assert staging.suffix == ".json" and staging.name.startswith(WRITING)
            staging.write_bytes(NEW[:50])
            raise failure
        assert (place.files(), place.content()) == (there, old)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcé \n", max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.text("abc.é", max_size=5), json_values, max_size=5), st.sampled_from([None, 1, 2]))
def test_values_written_as_json_are_read_back_by_the_standard_reader(
    values: dict[str, Any], indent: int | None
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "values.json"
        write_json(path, values, indent=indent)
        text = path.read_text(encoding="utf-8")
        assert json.loads(text) == values and text.endswith("\n")


@settings(max_examples=8)
@given(st.permutations(range(6)))
def test_of_writers_in_one_another_the_last_to_finish_is_whole(order: list[int]) -> None:
    """Two runs that write one file do not mix: each has a neighbour of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "shared.txt"
        writers = [replacing(path) for _ in order]
        stagings = [writer.__enter__() for writer in writers]
        assert len(set(stagings)) == len(order)
        for number, staging in enumerate(stagings):
            staging.write_text(f"writer {number}\n" * (number + 1))
        for number in order:
            writers[number].__exit__(None, None, None)
            assert path.read_text() == f"writer {number}\n" * (number + 1)
        assert list(path.parent.iterdir()) == [path]
