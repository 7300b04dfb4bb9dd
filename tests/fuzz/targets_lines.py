"""Fuzzed: what many lines are answered from and into: JSONL and parquet lines, job.json, the files of shards.

Damage ends in an answer or one sentence with exit code 2, and what was answered before stays: no shard's file changes.
"""

import contextlib
import io
import json
import shutil
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from lrkit.batch.job import _Checker  # pyright: ignore[reportPrivateUsage]
from lrkit.batch.line_files import LineFile, open_lines
from lrkit.cli.main import main
from lrkit.contract.sample import Sample
from lrkit.errors import DataError
from tests.fuzz import jsonl_lines, mutate, pictures
from tests.lines import values, write_lines

_work: list[Path] = []
_bundle: list[Path] = []
_COUNT, _SHARD = 6, 2


def prepare(work: Path, bundle: Path) -> None:
    _work[:], _bundle[:] = [work], [bundle]
    pictures.picture("RGB").save(work / "a.png")


def _ask(folder: Path) -> tuple[int, str]:
    """Exit code and standard error of `lrkit ask` for the lines, into `folder`."""
    words = ["ask", _bundle[0], "--data", _lines(), "-o", folder, "--threads", 1, "--shard-lines", _SHARD]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main([str(word) for word in words])
        except SystemExit as left:
            return (left.code if isinstance(left.code, int) else 0), said.getvalue()
    return 0, said.getvalue()


@cache
def _lines() -> Path:
    return write_lines(_work[0] / "asked", values(_COUNT))


@cache
def _whole() -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """job.json of work that was begun, and of work that is done; the answers of each shard."""
    folder = _work[0] / "whole"
    assert _ask(folder)[0] == 0
    done = (folder / "job.json").read_bytes()
    record = json.loads(done)
    begun = {name: value for name, value in record.items() if name not in ("rows", "figures")} | {"complete": False}
    rows = (folder / "answers.jsonl").read_bytes().splitlines(keepends=True)
    # The blank line behind the third belongs to a shard too.
    sizes = (2, 1, 2, 1)
    assert len(rows) == sum(sizes) == _COUNT
    shards = tuple(b"".join(rows[sum(sizes[:nth]) : sum(sizes[: nth + 1])]) for nth in range(len(sizes)))
    return json.dumps(begun).encode(), done, shards


def _folder(record: bytes, shards: tuple[bytes, ...], joined: bool) -> Path:
    """A folder of answers, begun or done."""
    folder = _work[0] / "answered"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "job.json").write_bytes(record)
    if joined:
        (folder / "answers.jsonl").write_bytes(b"".join(_whole()[2]))
        return folder
    (folder / "shards").mkdir()
    for number, content in enumerate(shards):
        (folder / "shards" / f"{number:07d}.jsonl").write_bytes(content)
    return folder


def _record_case(rng: Random) -> tuple[bool, bytes]:
    """Whether the work was done, and its record, damaged."""
    joined = rng.random() < 0.5
    begun, done, _ = _whole()
    return joined, mutate.json_file(json.loads(done if joined else begun), rng)


def _run_record(case: tuple[bool, bytes]) -> None:
    joined, record = case
    shards = _whole()[2]
    folder = _folder(record, shards, joined)
    code, said = _ask(folder)
    if code == 0:
        assert (folder / "answers.jsonl").read_bytes() == b"".join(shards), "other answers"
        return
    _told(code, said)
    if joined:
        assert (folder / "answers.jsonl").read_bytes() == b"".join(shards), "answers are lost"
    else:
        assert _kept(folder) == shards, "a shard is lost"


def _shard_case(rng: Random) -> tuple[int, bytes]:
    """Which shard, and its rows, damaged."""
    number = rng.randrange(len(_whole()[2]))
    rows = _whole()[2][number].splitlines()
    if rng.random() < 0.3:
        return number, mutate.raw(b"\n".join(rows) + b"\n", rng)
    place = rng.randrange(len(rows))
    rows[place] = mutate.json_file(json.loads(rows[place]), rng)
    return number, b"".join(row + b"\n" for row in rows)


def _run_shard(case: tuple[int, bytes]) -> None:
    number, damaged = case
    begun, _, shards = _whole()
    given = (*shards[:number], damaged, *shards[number + 1 :])
    folder = _folder(begun, given, joined=False)
    code, said = _ask(folder)
    if code == 0:  # what was damaged is an answer still
        assert (folder / "answers.jsonl").read_bytes() == b"".join(given)
        json.loads((folder / "job.json").read_text())
        return
    _told(code, said)
    assert f"{number:07d}.jsonl" in said and _kept(folder) == given, "a shard is lost"
    (folder / "shards" / f"{number:07d}.jsonl").unlink()
    assert _ask(folder)[0] == 0, "what the sentence says does not help"
    assert (folder / "answers.jsonl").read_bytes() == b"".join(shards)


def _told(code: int, said: str) -> None:
    assert code == 2 and said.startswith("error: ") and len(said.splitlines()) == 1, (code, said)


def _kept(folder: Path) -> tuple[bytes, ...]:
    return tuple(file.read_bytes() for file in sorted((folder / "shards").iterdir()))


def _jsonl_case(rng: Random) -> tuple[bool, bytes]:
    """Whether lines must have answers, and a file."""
    count = rng.choice((0, 1, 3, 8))
    lines = [next(jsonl_lines.cases(rng.randrange(2**40), 1))[1] for _ in range(count)]
    return rng.random() < 0.5, rng.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines)


def _run_jsonl(case: tuple[bool, bytes]) -> None:
    answered, content = case
    path = _work[0] / "lines.jsonl"
    path.write_bytes(content)
    _read(open_lines(str(path), answered)[0])


def _parquet_case(rng: Random) -> tuple[bool, bytes]:
    """Whether lines must have answers, and a file: rows that are odd, or bytes that are damaged."""
    import pyarrow
    from pyarrow import parquet

    rows: Any = [jsonl_lines.GOOD] * rng.choice((1, 3))
    if odd := rng.random() < 0.7:
        rows = mutate.values(rows, rng)
    try:
        table = pyarrow.Table.from_pylist(rows)
        sink = io.BytesIO()
        parquet.write_table(table, sink, row_group_size=2)
    except Exception:  # whatever pyarrow says of rows that no file can hold
        return False, b""
    content = sink.getvalue()
    return rng.random() < 0.5, content if odd and rng.random() < 0.7 else mutate.raw(content, rng)


def _run_parquet(case: tuple[bool, bytes]) -> None:
    answered, content = case
    path = _work[0] / "lines.parquet"
    path.write_bytes(content)
    _read(open_lines(str(path), answered)[0])


def _read(file: LineFile) -> None:
    """Cuts the file, looking at each line, and reads what was cut: the same lines."""
    checker = _Checker(file.path)
    looked: list[int] = []

    def look(number: int, made: Sample | DataError) -> None:
        looked.append(number)
        checker(number, made)

    spans = list(file.spans(3, look, None))
    again = [number for span in spans for number, _ in file.read(span)]
    assert again == looked and len(looked) == sum(span.rows for span in spans)
    checker.scan.raise_if_bad()


TARGETS: dict[str, Any] = {
    "job record": (1, _record_case, _run_record),
    "shard file": (1, _shard_case, _run_shard),
    "asked lines": (3, _jsonl_case, _run_jsonl),
    "parquet lines": (3, _parquet_case, _run_parquet),
}
"""Name -> weight, how a case is drawn, what is done with it."""
