"""The page of `lrkit serve` in headless Chromium, by keyboard: what it shows is what the SDK answers."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrkit import Reasoner
from tests.serving import serving

BROWSER = Path(__file__).resolve().parents[1] / "browser"
ROOMS = BROWSER.parents[1] / "docs" / "images" / "rooms.png"
QUESTION = "Take 4 hops. Which room are you in? Start in room 3"


@pytest.fixture
def node() -> str:
    """Skips where no browser is at hand: LRKIT_BROWSER=1 fetches one by npm, 65 MB."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    if not (BROWSER / "node_modules").is_dir():
        if os.environ.get("LRKIT_BROWSER") != "1":
            pytest.skip("tests/browser has no node_modules; LRKIT_BROWSER=1 lets this test call npm install")
        install = ["npm", "install", "--no-audit", "--no-fund"]
        done = subprocess.run(install, cwd=BROWSER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return found


def test_the_page_shows_the_answer_its_steps_and_where_they_looked(node: str, tmp_path: Path) -> None:
    """LRKIT_SCREENSHOTS=FOLDER keeps what the page looked like."""
    with serving("tiny") as found:
        address = f"http://127.0.0.1:{found.port}/"
        command = [node, "page.mjs", address, str(ROOMS), QUESTION, os.environ.get("LRKIT_SCREENSHOTS", str(tmp_path))]
        done = subprocess.run(command, cwd=BROWSER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    reasoner = Reasoner.from_checkpoint("tiny")
    latent, cot = reasoner.ask(ROOMS, QUESTION), reasoner.baseline("cot").ask(ROOMS, QUESTION, "cot")
    assert seen["title"] == ["tiny"] and seen["said"] == [latent.text, cot.text]
    assert seen["facts"][0].startswith(f"behind latent steps: {latent.latent_steps} latent step")
    assert f"{cot.spoken_tokens} generated tokens" in seen["facts"][1]
    with Image.open(ROOMS) as rooms:
        width, height = rooms.size
    boxes = [
        [[100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height]
         for left, top, right, bottom in (region.box for region in step)]
        for step in latent.regions
    ]  # fmt: skip
    assert len(boxes) == latent.latent_steps and np.abs(np.subtract(seen["steps"], boxes)).max() < 1e-3
    assert seen["wide"] == 390, "the page is wider than a phone"
    assert "vocabulary lacks" in seen["failed"][0]
    assert seen["elsewhere"] == []
    assert all("400" in problem for problem in seen["problems"]), seen["problems"]  # the refused question alone
