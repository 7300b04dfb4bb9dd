"""The benchmarks of the runtime run, on a small bundle and with few repeats, and write what they promise."""

import csv
import json
import subprocess
import sys
from pathlib import Path

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
