"""Many lines answered by one process: the answers of a plain loop, each once, whatever was killed in between; and each
reason for which there are none. On Ray: tests/stress/test_kill_lines.py."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lrkit import Reasoner
from lrkit.batch.answer_lines import Answered, answer_lines
from lrkit.batch.job import AskedModel, Job, LineOptions
from lrkit.batch.shard_answers import MOST_TRIES, ShardWork
from lrkit.errors import CapacityError, DataError, UserError
from tests.commands import lrkit
from tests.lines import SHARD, rows, values, write_lines

pytest.importorskip("onnx")

ASKED = LineOptions(shard_lines=SHARD, scored=True, batch_size=3)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: a test that alters them takes a copy."""
    return write_lines(tmp_path_factory.mktemp("lines"))


def run(bundle: Path, lines: Path, folder: Path, options: LineOptions = ASKED) -> Answered:
    return answer_lines(AskedModel(model=str(bundle), threads=1), str(lines), folder, options)


def test_the_answers_are_those_of_a_loop_in_the_order_of_the_lines(bundle: Path, lines: Path, tmp_path: Path) -> None:
    done = run(bundle, lines, tmp_path / "out", replace(ASKED, modes=("latent", "cot")))
    found = rows(done.answers)
    asked = {mode: Reasoner.load(bundle, threads=1).baseline(mode) for mode in ("latent", "cot")}
    wanted = [
        (line["id"], mode, asked[mode].ask(lines.parent / line["image"], line["question"], mode).text)
        for line in values()
        for mode in ("latent", "cot")
    ]
    assert [(row["id"], row["mode"], row["text"]) for row in found] == wanted and len(found) == 46
    assert [row["line"] for row in found[::2]] == [1, 2, 3, *range(5, 25)], "a blank line has no row"
    assert all(row["correct"] == (row["answer"] == row["reference"]) for row in found)
    assert not any("sec" in name or "timings" in name for row in found for name in row), "times would differ"
    figures = done.figures["modes"]["latent"]
    assert figures["samples"] == 23 and figures["correct"] == sum(row["correct"] for row in found[::2])
    assert sorted(path.name for path in done.folder.iterdir()) == ["answers.jsonl", "job.json"]


class Killed(BaseException):
    """Stands for the end of a process: nothing catches it."""


@pytest.mark.parametrize("at", range(7))
def test_work_that_was_killed_between_shards_goes_on(
    bundle: Path, lines: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before shard `at`, and at the last before the answers are joined."""
    whole, place, real, begun = run(bundle, lines, tmp_path / "whole"), tmp_path / "out", ShardWork.do, list[int]()

    def do(self: ShardWork, shard: object) -> int:
        begun.append(getattr(shard, "number"))  # noqa: B009
        if len(begun) > at:
            raise Killed
        return real(self, shard)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(ShardWork, "do", do)
    if at < 6:
        with pytest.raises(Killed):
            run(bundle, lines, place)
        assert not (place / "answers.jsonl").exists() and len(list(place.glob("shards/*"))) == at
        at = 100
    done = run(bundle, lines, place)
    assert done.answers.read_bytes() == whole.answers.read_bytes() and done.figures == whole.figures
    assert begun[-1] == 5 and len(begun) <= 7, "what was done is not done again"
    again = run(bundle, lines, place)
    assert again.answered_now == 0 and again.figures == whole.figures


def test_a_line_whose_picture_cannot_be_read_ends_the_work_and_a_repair_goes_on(
    bundle: Path, lines: Path, tmp_path: Path
) -> None:
    own, place = Path(shutil.copytree(lines.parent, tmp_path / "own")) / lines.name, tmp_path / "out"
    picture = (own.parent / "1.png").read_bytes()
    (own.parent / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"lines\.jsonl:2: .*1\.png"):
        run(bundle, own, place)
    (own.parent / "1.png").write_bytes(picture)
    assert run(bundle, own, place).answers.read_bytes() == run(bundle, lines, tmp_path / "whole").answers.read_bytes()


def test_bad_lines_are_refused_before_a_model_is_loaded_or_become_rows(
    bundle: Path, lines: Path, tmp_path: Path
) -> None:
    given = [*values(3), {"question": "Which?", "image": "none.png"}, {"question": ""}, values(4)[3], values(1)[0]]
    bad = write_lines(tmp_path / "bad", given)
    with pytest.raises(DataError) as said:
        run(tmp_path / "no-model", bad, tmp_path / "out")
    assert [line.partition(": ")[0] for line in str(said.value).splitlines()] == [f"{bad}:5", f"{bad}:6", f"{bad}:8"]
    assert "id 'q0' was used in line 1" in str(said.value) and not (tmp_path / "out").exists()
    done = run(bundle, bad, tmp_path / "out", replace(ASKED, skip_bad=True))
    found = rows(done.answers)
    assert [row["line"] for row in found] == [1, 2, 3, 5, 6, 7, 8]
    assert ["error" in row for row in found] == [False, False, False, True, True, False, False]
    assert done.figures["modes"]["latent"]["errors"] == 2


def test_a_line_too_large_for_the_model_is_named_or_becomes_a_row(bundle: Path, tmp_path: Path) -> None:
    given = [*values(2), {**values(3)[2], "question": "Which room? " * 100}, values(4)[3]]
    path = write_lines(tmp_path / "long", given)
    with pytest.raises(CapacityError, match=r"lines\.jsonl:3: "):
        run(bundle, path, tmp_path / "out")
    found = rows(run(bundle, path, tmp_path / "other", replace(ASKED, skip_bad=True)).answers)
    assert ["error" in row for row in found] == [False, False, True, False], "the others of its batch are answered"


def test_a_folder_of_something_else_is_refused_and_left(bundle: Path, lines: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    kept = run(bundle, lines, place).answers.read_bytes()
    own = Path(shutil.copytree(lines.parent, tmp_path / "own")) / lines.name
    own.write_text(own.read_text().replace("q5", "other"))
    for model, data, options, says in (
        ("tiny", lines, ASKED, "holds answers of another model"),
        (bundle, own, ASKED, "holds answers to other lines, or the data changed since"),
        (bundle, lines, replace(ASKED, max_new_tokens=2), "holds answers that were asked for with other options"),
    ):
        with pytest.raises(UserError, match=says):
            run(Path(model), data, place, options)
    assert (place / "answers.jsonl").read_bytes() == kept
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no answers"):
        run(bundle, lines, tmp_path / "full")


def test_work_that_was_killed_while_it_wrote_its_record_begins(bundle: Path, lines: Path, tmp_path: Path) -> None:
    """A random kill of the leader (seed 1) left such a file, and the next command refused the folder as not empty."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".writing-{ended.pid}-0-job.json").write_bytes(b"")
    done = run(bundle, lines, tmp_path / "out")
    assert done.answered_now == done.rows == 23
    assert sorted(path.name for path in done.folder.iterdir()) == ["answers.jsonl", "job.json"]


def test_a_shard_that_ended_its_worker_again_and_again_is_named(bundle: Path, lines: Path, tmp_path: Path) -> None:
    job = Job(tmp_path / "out", str(lines), AskedModel(model=str(bundle)), ASKED)
    shard = job.survey()[1]
    job.tries.mkdir(parents=True)
    (job.tries / "0000001").write_bytes(b"." * MOST_TRIES)
    with pytest.raises(UserError, match=r"shard 1 \(lines 5 to 8 of .*lines\.jsonl\): ended its worker 3 times"):
        ShardWork(job, counted=True).do(shard)


def test_a_shard_that_somebody_cut_is_told_and_not_joined(
    bundle: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ShardWork.do

    def do(self: ShardWork, shard: object) -> int:
        done = real(self, shard)  # pyright: ignore[reportArgumentType]
        if getattr(shard, "number") == 2:  # noqa: B009
            place = tmp_path / "out" / "shards" / "0000002.jsonl"
            place.write_text("".join(place.read_text().splitlines(keepends=True)[:-1]))
        return done

    monkeypatch.setattr(ShardWork, "do", do)
    with pytest.raises(UserError, match=r"0000002\.jsonl: has 3 rows where 4 belong"):
        run(bundle, lines, tmp_path / "out")
    assert not (tmp_path / "out" / "answers.jsonl").exists()


@pytest.mark.parametrize(
    "row",
    ["{", "[]", "{}", '{"mode": "other"}', '{"mode": "latent"}', "\xff", "[" * 5000, "FEW", "TEXT", "HUGE"],
    ids=lambda row: row[:20],
)
def test_a_damaged_row_of_a_shard_is_told_and_the_shard_is_done_again(
    bundle: Path, lines: Path, tmp_path: Path, row: str
) -> None:
    """The disk lost a part behind the name: the sentence names the file, and without it the work goes on."""
    whole = run(bundle, lines, tmp_path / "whole")
    job = Job(tmp_path / "out", str(lines), AskedModel(model=str(bundle), threads=1), ASKED)
    shards, kept = job.survey(), whole.answers.read_text(encoding="utf-8").splitlines(keepends=True)
    job.begin(job.identity(shards))
    job.shards.mkdir()
    for shard in shards:
        own, kept = kept[: shard.span.rows], kept[shard.span.rows :]
        job.result(shard).write_text("".join(own), encoding="utf-8")
    damaged = job.result(shards[2])
    counts = {"FEW": -1, "TEXT": "1", "HUGE": 10**4000}
    if row in counts:
        row = json.dumps({**json.loads(damaged.read_text().splitlines()[0]), "ar_steps": counts[row]})
    damaged.write_bytes(b"".join([row.encode("latin-1") + b"\n", *damaged.read_bytes().splitlines(keepends=True)[1:]]))
    with pytest.raises(UserError, match=r"0000002\.jsonl: holds a row that is no answer; remove it"):
        run(bundle, lines, job.folder)
    damaged.unlink()
    done = run(bundle, lines, job.folder)
    assert done.answers.read_bytes() == whole.answers.read_bytes() and done.answered_now == shards[2].span.rows


def test_a_record_that_lost_its_figures_is_made_again(bundle: Path, lines: Path, tmp_path: Path) -> None:
    whole = run(bundle, lines, tmp_path / "out")
    record = json.loads((whole.folder / "job.json").read_text())
    for damaged in (
        None,
        {},
        {**record["figures"], "modes": {}},
        {**record["figures"], "modes": {"latent": {"errors": 1}}},
    ):
        (whole.folder / "job.json").write_text(json.dumps({**record, "figures": damaged}))
        again = run(bundle, lines, whole.folder)
        assert again.answered_now == again.rows and again.figures == whole.figures
    assert run(bundle, lines, whole.folder).answered_now == 0


def test_both_verbs_answer_lines(bundle: Path, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = tmp_path / "report.json"
    words = ("--data", lines, "--threads", 1, "--shard-lines", SHARD, "--json", told)
    assert lrkit("ask", bundle, *words, "--out", tmp_path / "asked") == 0
    assert "23 lines answered: " in capsys.readouterr().err
    assert json.loads(told.read_text())["modes"]["latent"]["accuracy"] is None
    assert lrkit("eval", bundle, *words, "--modes", "latent,cot", "--out", tmp_path / "measured") == 0
    lines_report = json.loads(told.read_text())
    assert lrkit("eval", bundle, "--data", lines, "--threads", 1, "--modes", "latent,cot", "--json", told) == 0
    plain = json.loads(told.read_text())
    for mode in ("latent", "cot"):
        for name in ("accuracy", "correct", "samples", "ar_steps_mean", "latent_steps_mean", "halting"):
            assert lines_report["modes"][mode][name] == plain["modes"][mode][name], (mode, name)
    assert lines_report["latent_minus"] == plain["latent_minus"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("ask tiny", "QUESTION is missing; give one, or a file of questions as --data"),
        ("ask tiny q --data x.jsonl -o y", "QUESTION is for a question on the command line, and --data has its own"),
        ("ask tiny --image a.png --data x.jsonl -o y", "--image is for a question on the command line"),
        ("ask tiny q --workers 2", "--workers is for the lines of a file; give them as --data"),
        ("ask tiny --data x.jsonl", "many lines are answered into a folder; give one as --out"),
        ("ask tiny q --engine ray", "--engine ray answers the lines of a file"),
        ("ask tiny --data LINES -o y --workers 2", "workers are processes of Ray; give --engine ray, or leave"),
        ("eval tiny --engine ray", "--engine ray is for lines that are answered into a folder; give one as --out"),
        ("eval tiny -o y", "--out is for the lines of one file, or of a pattern; give it as --data, once"),
        ("ask tiny --data LINES -o y --engine ray:none", "unknown engine 'none'; known are"),
    ],
)
def test_wrong_use_is_one_sentence(
    given: str, says: str, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert lrkit(*given.replace("LINES", str(lines)).split()) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1


def test_without_ray_its_extra_is_named(
    bundle: Path, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert lrkit("ask", bundle, "--data", lines, "-o", tmp_path / "out", "--engine", "ray") == 2
    assert 'pip install "lrkit[ray]"' in capsys.readouterr().err
