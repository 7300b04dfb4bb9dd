"""The benchmarks of the runtime run, on a small bundle and with few repeats, and write what they promise."""

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from lrkit import Reasoner
from lrkit.data.sample import Sample
from lrkit.runtime.ort import OrtEngine
from tests.bundles import QUESTION, picture

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, ROOT / "benchmarks" / name, *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_soak_counts_wrong_answers_and_notes_the_memory(bundle: Path, tmp_path: Path) -> None:
    printed = run("soak.py", bundle, "--asks", 60, "--workers", 8, "--output", tmp_path / "soak")
    assert "60 asks by 8 threads" in printed
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["wrong_answers"] == 0 and report["asks"] == 60 and report["different_questions"] >= 48
    rows = list(csv.DictReader((tmp_path / "soak.csv").read_text().splitlines()))
    assert [int(row["asks"]) for row in rows] == list(range(61)), "one row before the first ask, then one after each"
    assert report["resident_bytes_last"] == int(rows[-1]["resident_bytes"]) > 10_000_000


def test_cold_start_measures_fresh_processes(bundle: Path, tmp_path: Path) -> None:
    report_file = tmp_path / "cold.json"
    run("cold_start.py", bundle, "--runs", 1, "--python", sys.executable, "--json", report_file)
    report = json.loads(report_file.read_text())
    assert report["install"] is None, "nothing was installed, so nothing is said about it"
    assert report["import_sec"]["count"] == report["first_answer"]["wall_sec"]["count"] == 1
    assert 0 < report["first_answer"]["answer_sec"]["median"] < report["first_answer"]["wall_sec"]["median"]


def test_both_dialects_of_the_shipped_model_say_the_same(tmp_path: Path) -> None:
    """The program that engines are built from, against the one that is compared with torch; the full report, on more
    pictures and number types, is profiles/reports/dialects.json."""
    report_file = tmp_path / "few.json"
    run("dialects.py", "--samples", 32, "--variants", "fp32", "--json", report_file)
    report = json.loads(report_file.read_text())
    found = report["variants"]["fp32"]
    assert report["samples"] == 32
    assert set(found["dialects"]["same"].values()) == {32} and len(found["dialects"]["same"]) == 5
    assert found["dialects"]["first_difference"] == {}
    assert max(found["dialects"]["largest_error"].values()) < 1e-4
    assert 24 < found["right"]["ort"] == found["right"]["tensorrt"], "an untrained model would agree with itself too"
    assert "| fp32 | 32 of 32 |" in (tmp_path / "few.md").read_text()


def test_the_committed_comparison_holds() -> None:
    report = json.loads((ROOT / "profiles/reports/dialects.json").read_text())
    assert report["samples"] >= 500 and set(report["variants"]) >= {"fp32", "fp16", "int4"}
    assert set(report["variants"]["fp32"]["dialects"]["same"].values()) == {report["samples"]}


def test_words_are_timed_on_the_weights_made_for_them(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latent weights once answered in their stead, in as few words as they think steps."""
    asked: list[tuple[str, str]] = []
    generate = OrtEngine.generate

    def noted(self: OrtEngine, prompts, options, on_token=None):
        asked.append((self.role, options.mode))
        return generate(self, prompts, options, on_token)

    monkeypatch.setattr(OrtEngine, "generate", noted)
    engines = runpy.run_path(str(ROOT / "benchmarks" / "engines.py"))
    sample = Sample(images=(picture(),), question=QUESTION, steps=(), answer="")
    engines["measure_turn"]({"fp32": Reasoner.load(bundle)}, [sample])
    assert set(asked) == {("latent", "latent"), ("cot", "cot")}
