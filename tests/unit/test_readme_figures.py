"""The README's figures are those of the committed report."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readme_tells_what_the_report_holds():
    report = json.loads((ROOT / "profiles/reports/tiny-eval.json").read_text())
    readme = (ROOT / "README.md").read_text()
    figures = readme.partition("measured figures begin")[2].partition("measured figures end")[0]
    rows = [line for line in figures.splitlines() if line.startswith("| `")]
    assert len(rows) == len(report["sets"]) == 4
    for row in rows:
        kind = row.split("`")[1]
        found = report["sets"][f"trail:{kind}"]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        modes = found["modes"]
        for cell, mode in zip(cells[1:4], ("latent", "cot", "direct"), strict=True):
            low, high = modes[mode]["accuracy_low"], modes[mode]["accuracy_high"]
            assert cell == f"{100 * modes[mode]['accuracy']:.1f}% ({100 * low:.1f}-{100 * high:.1f})"
        assert cells[4] == f"{modes['cot']['ar_steps_mean']:.1f} / {modes['latent']['ar_steps_mean']:.1f}"
        ratios = found["cot_over_latent"]
        assert cells[5:] == [f"{ratios['ar_steps']:.1f}x", f"{ratios['latency']:.1f}x"]
