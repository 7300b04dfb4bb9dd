"""Headless Chromium for tests, by npm: tests/browser."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = Path(__file__).resolve().parent / "browser"


def npm_install(folder: Path) -> None:
    """Skips where there is no Node or nothing is installed; LRKIT_BROWSER=1 lets it call npm install."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if (folder / "node_modules").is_dir():
        return
    if os.environ.get("LRKIT_BROWSER") != "1":
        pytest.skip(f"{folder.name} has no node_modules; LRKIT_BROWSER=1 lets this test call npm install")
    run(["npm", "install", "--no-audit", "--no-fund"], folder)


def run(command: list[str], folder: Path) -> str:
    """What it prints; it must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def browse(script: str, *arguments: str) -> Any:
    """The JSON that a script of tests/browser prints."""
    return json.loads(run(["node", script, *arguments], BROWSER))


def screenshots(otherwise: Path) -> str:
    """LRKIT_SCREENSHOTS=FOLDER keeps what pages looked like."""
    return os.environ.get("LRKIT_SCREENSHOTS", str(otherwise))
