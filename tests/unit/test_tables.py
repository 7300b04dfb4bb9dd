"""The tables in README.md and docs/ say what the reports hold."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.tables import REPORTS, ROOT, TABLES, fresh, pages, rendered, stale


def region(name: str) -> str:
    return f"# A page\n\n<!-- table: {name} -->\nold\n<!-- end -->\n\nafter\n"


def test_no_page_is_stale() -> None:
    """`python -m benchmarks.tables` writes them."""
    assert len(pages()) > 5, "the sweep must see the pages"
    assert [str(page) for page in stale()] == []


def test_a_page_beside_a_report_is_rendered_whole(tmp_path: Path) -> None:
    for name in ("trail-ablation.json", "trail-ablation.md"):
        (tmp_path / REPORTS).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / REPORTS / name, tmp_path / REPORTS)
    assert stale(tmp_path) == []
    page = tmp_path / REPORTS / "trail-ablation.md"
    page.write_text(page.read_text().replace("98.3", "99.3"))
    assert stale(tmp_path) == [page] and "| base | 98.3 +- 0.7 |" in fresh(page, tmp_path)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_renders_from_its_reports(name: str) -> None:
    text = rendered(region(name))
    assert text.startswith("# A page\n") and text.endswith("<!-- end -->\n\nafter\n") and "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) >= 3 and len({row.count(" | ") for row in rows}) == 1, "as many cells in every row"
    assert all(file.name in text for file in TABLES[name].files(ROOT))
    assert rendered(text) == text, "a page that is fresh stays as it is"


def test_a_figure_that_changed_makes_the_page_stale(tmp_path: Path) -> None:
    (tmp_path / REPORTS).mkdir(parents=True)
    shutil.copy(ROOT / REPORTS / "tiny-eval.json", tmp_path / REPORTS)
    page = tmp_path / "docs" / "deep" / "page.md"
    page.parent.mkdir(parents=True)
    page.write_text(rendered(region("tiny"), tmp_path))
    assert stale(tmp_path) == [] and "| `trail:main` | 99.2% (98.4-99.6) | 100.0% (99.6-100.0) |" in page.read_text()
    report = json.loads((tmp_path / REPORTS / "tiny-eval.json").read_text())
    report["sets"]["trail:main"]["modes"]["latent"]["accuracy"] = 0.5
    (tmp_path / REPORTS / "tiny-eval.json").write_text(json.dumps(report))
    assert stale(tmp_path) == [page]


def test_a_report_from_another_machine_is_a_row_without_code(tmp_path: Path) -> None:
    (tmp_path / REPORTS).mkdir(parents=True)
    report = json.loads((ROOT / REPORTS / "tiny-int4-cpu.json").read_text())
    for name, cpu in (("tiny-int4-cpu-other", "Another CPU"), ("tiny-int4-cpu", "One CPU")):
        report["provenance"]["cpu"] = cpu
        (tmp_path / REPORTS / f"{name}.json").write_text(json.dumps(report))
    text = rendered(region("headline"), tmp_path)
    assert text.index("| One CPU | 1 |") < text.index("| Another CPU | 1 |")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table: tinny -->\n<!-- end -->\n", "no table is called 'tinny'; there are tiny, "),
        ("<!-- table: tiny -->\nand nothing more\n", "has no <!-- end --> of its own"),
        ("<!-- table: tiny -->\n<!-- table: engines -->\n<!-- end -->\n", "has no <!-- end --> of its own"),
    ],
)
def test_a_mistake_in_a_page_is_told(text: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        rendered(text)


def test_a_table_without_a_report_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no report matches profiles/reports/tiny-eval\.json; measure one"):
        rendered(region("tiny"), tmp_path)
