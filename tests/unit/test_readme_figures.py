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


def test_the_engines_of_the_readme_are_those_of_the_report():
    report = json.loads((ROOT / "profiles/reports/engines.json").read_text())
    text = (ROOT / "README.md").read_text().partition("engines begin")[2].partition("engines end")[0]
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    for name, engine in (("torch, fp32", "torch"), ("program, fp32", "fp32"), ("program, int4", "int4")):
        program = engine if engine == "torch" else f"{engine} program"
        figures = [report["milliseconds"][f"{engine} {mode}"] for mode in ("latent", "cot")]
        figures.append(report["ratios"][f"in words / latent, {program}"])
        if engine != "torch":
            figures.append(report["ratios"][f"torch / {program}, latent"])
        for low, middle, high in figures:
            assert f"| {middle:.2f} ({low:.2f}-{high:.2f}) |" in rows[name]
