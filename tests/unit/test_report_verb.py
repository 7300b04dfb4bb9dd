"""`lrkit report`: every report in the repository is shown and rendered again; one that lacks something is refused."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import lrkit

REPORTS = Path(__file__).resolve().parents[2] / "profiles" / "reports"


def profiles() -> list[Path]:
    return [file for file in sorted(REPORTS.glob("*.json")) if json.loads(file.read_text()).get("kind") == "profile"]


def test_reports_are_shown_again_and_their_pages_are_what_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(profiles()) >= 4
    for file in profiles():
        assert lrkit("report", file, "-o", tmp_path) == 0
        shown = capsys.readouterr().out
        assert json.loads(file.read_text())["headlines"][0] in shown and str(tmp_path / f"{file.stem}.md") in shown
        assert "<svg" in (tmp_path / f"{file.stem}.html").read_text()
        assert (tmp_path / f"{file.stem}.md").read_text() == file.with_suffix(".md").read_text(), file


def test_pages_lie_beside_the_report_and_conditions_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(shutil.copy(REPORTS / "tiny-int4-cpu.json", tmp_path / "report.json"))
    assert lrkit("report", file, "--fail-if", "latent.accuracy < 0.9") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md", "report.html"}
    assert lrkit("report", tmp_path, "--fail-if", "cot_over_latent.time < 20") == 2, "a folder stands for its report"
    assert "error: cot_over_latent.time < 20 (it is " in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["machine", "models", "suite", "figures", "runs.0.summary.latency_sec", "skipped"])
def test_a_report_that_lacks_something_is_one_sentence(
    lost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((REPORTS / "tiny-int4-cpu.json").read_text())
    *path, last = lost.split(".")
    place = report
    for key in path:
        place = place[int(key)] if key.isdigit() else place[key]
    del place[last]
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    assert lrkit("report", file, "--fail-if", "latent.accuracy < 0.9") == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "; " in said and "Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"report.json"} or lost == "figures"


def test_nothing_in_a_report_becomes_a_tag_of_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reports of others are rendered too: what binds a phase once stood in the page as it came."""
    report = json.loads((REPORTS / "tiny-int4-cpu.json").read_text())
    for run in report["runs"]:
        run["rows"] = run["rows"][:1]
    # One of each kind: what is told of the second run is written by the same code as of the first.
    kinds = {tuple("*" if isinstance(key, int) else key for key in place): place for place in texts(report)}
    places = [place for kind, place in kinds.items() if kind[0] != "suite" and kind[:2] != ("provenance", "packages")]
    assert len(places) > 30
    rendered = 0
    for number, place in enumerate(places):
        altered = copy.deepcopy(report)
        inside = altered
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = '"><script>alert(1)</script>'
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(altered))
        code = lrkit("report", file)
        said = capsys.readouterr()
        assert code == 0 or (len(said.err.splitlines()) == 1 and "Traceback" not in said.err), place
        if code == 0:
            rendered += 1
            assert "<script" not in (tmp_path / f"{number}.html").read_text(), place
    assert rendered > 20


def texts(values: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the texts in JSON values are."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    if isinstance(values, str):
        yield place
    for key, value in items:
        yield from texts(value, (*place, key))


def test_what_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("report", REPORTS / "tiny-eval.json", "-o", tmp_path) == 2
    assert "is no report of lrkit profile; give its report.json" in capsys.readouterr().err
    assert lrkit("report", tmp_path / "absent.json") == 2
    assert "no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
