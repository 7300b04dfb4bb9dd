"""What a device pays before the first answer: disk of the base install, import, a process from start to answer.

    python benchmarks/cold_start.py BUNDLE --json cold_start.json
    python benchmarks/cold_start.py BUNDLE --python .venv/bin/python     # an environment that is there: no install

It makes a fresh virtual environment in a temporary folder, installs this checkout into it without extras (from the
package index that pip is set to), and counts what that adds to the disk. Every measurement is a new Python. Processor
time says what the work costs. The wall clock says the same on an idle machine and more on a busy one (the report
holds the load). The goals are those of the project: 150 MB, 0.3 s, 2 s.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lrkit.data.trail import trail_set
from lrkit.provenance import collect
from lrkit.summary import summarize

ROOT = Path(__file__).resolve().parents[1]
GOALS = {"install_mb": 150.0, "import_sec": 0.3, "first_answer_sec": 2.0}
IMPORT = "import time; t = time.perf_counter(); import lrkit{also}; print(time.perf_counter() - t)"
FIRST_ANSWER = """
import sys
from lrkit import Reasoner
answer = Reasoner.load(sys.argv[1]).ask(sys.argv[2], sys.argv[3])
assert "torch" not in sys.modules
print(answer.timings["total"])
"""


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        install = None if args.python else install_base(work / "venv")
        python = args.python.absolute() if args.python else work / "venv/bin/python"
        sample = trail_set("main", "test", 4)[3]
        picture = work / "rooms.png"
        sample.images[0].save(picture)  # pyright: ignore[reportAttributeAccessIssue]
        ask = [python, "-c", FIRST_ANSWER, args.bundle.absolute(), picture, sample.question]
        report = {
            "schema": 1,
            "kind": "cold_start",
            "bundle": str(args.bundle),
            "bundle_bytes": sum(path.stat().st_size for path in args.bundle.rglob("*") if path.is_file()),
            "install": install,
            "import_sec": inner([python, "-c", IMPORT.format(also="")], args.runs),
            "import_reasoner_sec": inner([python, "-c", IMPORT.format(also="; from lrkit import Reasoner")], args.runs),
            "first_answer": process(ask, args.runs),
            "python_alone": process([python, "-c", "pass"], args.runs),
            "goals": GOALS,
            "provenance": collect(cpus=os.cpu_count(), load_before=os.getloadavg()[0]),
        }
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def install_base(venv: Path) -> dict[str, Any]:
    """Installs this checkout without extras; bytes that were added, in all and by folder."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    before = disk_bytes(venv)
    source = venv.parent / "source"
    # A copy, so that building leaves nothing in the checkout.
    unwanted = (".venv", "runs", "node_modules", "__pycache__", "build")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*unwanted))
    (packages,) = venv.glob("lib/python*/site-packages")
    old = {path.name for path in packages.iterdir()}
    run([venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", source])
    parts = {path.name: disk_bytes(path) for path in packages.iterdir() if path.name not in old}
    return {
        "bytes": disk_bytes(venv) - before,
        "bytecode_bytes": sum(disk_bytes(file) for name in parts for file in (packages / name).rglob("*.pyc")),
        "onnxruntime_and_numpy_bytes": sum(parts[name] for name in parts if name.startswith(("onnxruntime", "numpy"))),
        "parts": dict(sorted(parts.items(), key=lambda item: -item[1])),
        "torch_or_transformers": [name for name in ("torch", "transformers") if name in parts],
    }


def disk_bytes(path: Path) -> int:
    """What `du` counts: whole blocks, a file with several links once."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    seen = {(found.st_dev, found.st_ino): found.st_blocks * 512 for found in (file.lstat() for file in files)}
    return sum(seen.values())


def inner(command: list[Any], runs: int) -> dict[str, Any]:
    """Seconds that a fresh Python measures itself and prints."""
    run(command)
    return summarize(float(run(command)) for _ in range(runs)).to_dict()


def process(command: list[Any], runs: int) -> dict[str, Any]:
    """Seconds from starting a process to its end: wall clock, and processor time of all its threads."""
    run(command)
    walls, cpus, inside = [], [], []
    for _ in range(runs):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        printed = run(command)
        walls.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        inside += [float(printed)] if printed.strip() else []
    named = {"wall_sec": walls, "cpu_sec": cpus, "answer_sec": inside}
    return {name: summarize(values).to_dict() for name, values in named.items()}


def run(command: list[Any]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=Path("/"))
    if done.returncode:
        sys.exit(f"error: the measured process failed:\n{done.stderr}")
    return done.stdout


def show(report: dict[str, Any]) -> None:
    table = Table(title="cold start (median over fresh processes)", title_justify="left")
    for column in ("what", "median", "spread", "goal"):
        table.add_column(column, justify="left" if column == "what" else "right")
    if report["install"]:
        named = {
            "base install on disk": ("bytes", "150 MB"),
            "   of that bytecode": ("bytecode_bytes", ""),
            "   of that onnxruntime and numpy": ("onnxruntime_and_numpy_bytes", ""),
        }
        for name, (key, goal) in named.items():
            table.add_row(name, f"{report['install'][key] / 1e6:.1f} MB", "", goal)
    answer, alone = report["first_answer"], report["python_alone"]
    rows = [
        ("import lrkit", report["import_sec"], "0.3 s"),
        ("from lrkit import Reasoner", report["import_reasoner_sec"], ""),
        ("first answer, whole process, wall clock", answer["wall_sec"], "2 s"),
        ("first answer, whole process, processor time", answer["cpu_sec"], "2 s"),
        ("   of that the answer itself", answer["answer_sec"], ""),
        ("an empty Python process, wall clock", alone["wall_sec"], ""),
    ]
    for name, figures, goal in rows:
        spread = f"{figures['min']:.3f} to {figures['max']:.3f}"
        table.add_row(name, f"{figures['median']:.3f} s", spread, goal)
    Console().print(table)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Disk, import and first answer of the base install.")
    parser.add_argument("bundle", type=Path, help="a folder that `lrkit export` wrote")
    parser.add_argument("--runs", type=int, default=11, help="fresh processes per measurement (default 11)")
    parser.add_argument("--python", type=Path, help="measure this interpreter instead of a fresh install")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--smoke", action="store_true", help="the smallest sizes: whether it runs, not how fast; of this Python"
    )
    args = parser.parse_args()
    if args.smoke:
        args.runs, args.python = 1, Path(sys.executable)
    return args


if __name__ == "__main__":
    main()
