"""Files of questions cut into shards: every line in one shard, read as when it was cut, and each reason named."""

import json
from pathlib import Path

import pytest

from lrkit.batch.line_files import LineFile, Made, Span, open_lines
from lrkit.contract.sample import Sample
from lrkit.errors import DataError
from tests.lines import values, write_lines

pyarrow = pytest.importorskip("pyarrow")


def spans_of(file: LineFile, most: int = 4, limit: int | None = None) -> list[Span]:
    return list(file.spans(most, None, limit))


def read(file: LineFile, spans: list[Span]) -> list[tuple[int, Made]]:
    return [found for span in spans for found in file.read(span)]


def all_of(path: Path, answered: bool) -> list[Made]:
    (file,) = open_lines(str(path), answered)
    return [made for _, made in read(file, spans_of(file))]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_lines(tmp_path)


def parquet_of(file: Path, name: str = "lines.parquet", row_group_size: int = 5) -> Path:
    from pyarrow import parquet

    lines = [json.loads(line) for line in file.read_text().splitlines() if line]
    parquet.write_table(pyarrow.Table.from_pylist(lines), file.with_name(name), row_group_size=row_group_size)
    return file.with_name(name)


@pytest.mark.parametrize("most", [1, 3, 4, 100])
def test_every_line_is_in_one_shard(jsonl: Path, most: int) -> None:
    (file,) = open_lines(str(jsonl), True)
    spans = spans_of(file, most)
    assert [span.first for span in spans] == list(range(1, 25, most))
    assert sum(span.lines for span in spans) == 24 and sum(span.rows for span in spans) == 23
    found = read(file, spans)
    assert [number for number, _ in found] == [1, 2, 3, *range(5, 25)]
    assert [made.id for _, made in found if isinstance(made, Sample)] == [f"q{number}" for number in range(23)]


@pytest.mark.parametrize("group", [1, 5, 100])
def test_parquet_holds_the_same_samples(jsonl: Path, group: int) -> None:
    """A row group may hold several shards, and a shard rows of several groups."""
    (file,), (table,) = (open_lines(str(name), True) for name in (jsonl, parquet_of(jsonl, row_group_size=group)))
    wanted = [made for _, made in read(file, spans_of(file))]
    found = read(table, spans_of(table))
    assert [number for number, _ in found] == list(range(1, 24))
    for made, want in zip([made for _, made in found], wanted, strict=True):
        assert isinstance(made, Sample) and isinstance(want, Sample)
        assert (made.images, made.question, made.answer, made.id) == (
            want.images, want.question, want.answer, want.id
        )  # fmt: skip


def test_a_limit_ends_within_a_shard(jsonl: Path) -> None:
    for name in (jsonl, parquet_of(jsonl)):
        (file,) = open_lines(str(name), True)
        assert [span.lines for span in spans_of(file, 4, 10)] == [4, 4, 2]


def test_a_line_that_changed_since_is_told(jsonl: Path) -> None:
    (file,) = open_lines(str(jsonl), True)
    spans = spans_of(file)
    jsonl.write_text(jsonl.read_text().replace("q5", "q6"))
    assert read(file, spans[:1])
    with pytest.raises(DataError, match="has changed while it was read"):
        read(file, spans[1:2])


def test_blank_lines_are_counted_as_they_are_read(tmp_path: Path) -> None:
    """A shard's rows are known before they are read: what is blank to Python's texts is no row."""
    text = "\ufeff\n" + json.dumps(values(1)[0]) + "\n\u3000 \n\t\n{}\n"
    write_lines(tmp_path)
    (tmp_path / "odd.jsonl").write_text(text, encoding="utf-8")
    (file,) = open_lines(str(tmp_path / "odd.jsonl"), True)
    spans = spans_of(file, 10)
    assert [span.rows for span in spans] == [2] == [len(read(file, spans))]


def test_questions_need_no_answer_where_none_is_compared(tmp_path: Path) -> None:
    lines = [{"question": "Which room?"}, {"question": "Which?", "steps": "one"}, {"answer": "3"}]
    path = write_lines(tmp_path, lines)
    made = all_of(path, answered=False)
    assert isinstance(made[0], Sample) and made[0].answer == "" and made[0].steps == ()
    assert "steps is a text" in str(made[1]) and "question is missing" in str(made[2])
    made = all_of(path, answered=True)
    assert "answer is missing" in str(made[0]) and "steps is missing" in str(made[0])


def test_published_columns_are_read_of_parquet(tmp_path: Path) -> None:
    from pyarrow import parquet

    write_lines(tmp_path)
    row = {"image": {"bytes": (tmp_path / "0.png").read_bytes(), "path": None}, "question": "Which?", "answer": "A"}
    row |= {"choices": ["one", "two"], "rationale": "So it is.", "id": "r", "context": ""}
    parquet.write_table(pyarrow.Table.from_pylist([row] * 3), tmp_path / "m.parquet")
    (file,) = open_lines(f"hub:{tmp_path / 'm.parquet'}#m3cot", True)
    made = [made for _, made in read(file, spans_of(file, 2))]
    assert all(isinstance(one, Sample) and one.choices == ("one", "two") and len(one.images) == 1 for one in made)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing.jsonl", "there is no such data file"),
        ("*.none", "no file matches; give a JSONL or a parquet file"),
        (".", "is a folder; give the path of a JSONL file"),
        ("hub:lines.jsonl#m3cot", "many lines are read from parquet files"),
    ],
)
def test_what_is_no_file_of_lines_is_told(jsonl: Path, name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(jsonl.parent)
    with pytest.raises(DataError, match=says):
        open_lines(name, True)


def test_a_text_of_a_parquet_file_that_is_not_utf8_is_told(jsonl: Path) -> None:
    from pyarrow import parquet

    offsets = pyarrow.py_buffer(b"".join(place.to_bytes(4, "little") for place in (0, 3, 5)))
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"Who\xff\xfe")])
    parquet.write_table(pyarrow.table({"question": texts}), jsonl.parent / "odd.parquet")
    (file,) = open_lines(str(jsonl.parent / "odd.parquet"), False)
    with pytest.raises(DataError, match=r"odd\.parquet: cannot be read as parquet \(.*utf-8"):
        read(file, spans_of(file))


def test_a_parquet_file_that_is_none_or_lacks_a_column_is_told(jsonl: Path) -> None:
    from pyarrow import parquet

    (jsonl.parent / "no.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        spans_of(open_lines(str(jsonl.parent / "no.parquet"), True)[0])
    parquet.write_table(pyarrow.table({"query": ["What?"], "answer": ["it"]}), jsonl.parent / "less.parquet")
    with pytest.raises(DataError, match=r"has no column question; it has query, answer"):
        spans_of(open_lines(str(jsonl.parent / "less.parquet"), False)[0])
