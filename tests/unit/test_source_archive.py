"""The source archive is built, unpacked, and its tests pass in it."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import lrkit

ROOT = Path(__file__).resolve().parents[2]
SOME = (
    *(f"tests/unit/test_{name}.py" for name in ("base", "clock", "config", "constraints", "house", "order", "project")),
    "tests/laws/test_strict_files.py", "tests/laws/test_configs.py", "tests/parity/test_golden.py",
)  # fmt: skip
"""Those that read most of the archive: documents, workflows, recipes, golden vectors, shipped weights."""


@pytest.mark.slow
def test_the_tests_of_the_source_archive_pass(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason='needs the package hatchling: pip install "lrkit[dev]"')
    built = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(built, cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(tmp_path / f"lrkit-{lrkit.__version__}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"lrkit-{lrkit.__version__}"
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SOME]
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert str(ROOT) not in done.stdout, "the tests ran against the archive, not the checkout"
