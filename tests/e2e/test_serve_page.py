"""The page of `lrkit serve` in headless Chromium, by keyboard: what it shows is what the SDK answers."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lrkit import Reasoner
from tests.bundles import picture
from tests.serving import serving

BROWSER = Path(__file__).resolve().parents[1] / "browser"
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
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund"], cwd=BROWSER, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    return found


def test_the_page_shows_the_answer_its_steps_and_where_they_looked(node: str, tmp_path: Path) -> None:
    rooms = tmp_path / "rooms.png"
    picture().save(rooms)
    with serving("tiny") as found:
        address = f"http://127.0.0.1:{found.port}/"
        command = [node, "page.mjs", address, str(rooms), QUESTION, os.environ.get("LRKIT_SCREENSHOTS", str(tmp_path))]
        done = subprocess.run(command, cwd=BROWSER, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    reasoner = Reasoner.from_checkpoint("tiny")
    latent, cot = reasoner.ask(rooms, QUESTION), reasoner.baseline("cot").ask(rooms, QUESTION, "cot")
    assert seen["title"] == ["tiny"] and seen["said"] == [latent.text, cot.text]
    assert seen["facts"][0].startswith(f"behind latent steps: {latent.latent_steps} latent step")
    assert f"{cot.spoken_tokens} generated tokens" in seen["facts"][1]
    width, height = picture().size
    boxes = [
        [[100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height]
         for left, top, right, bottom in (region.box for region in step)]
        for step in latent.regions
    ]  # fmt: skip
    assert len(boxes) == latent.latent_steps and seen["steps"] == [pytest.approx(step, abs=1e-3) for step in boxes]
    assert seen["wide"] == 390, "the page is wider than a phone"
    assert "vocabulary lacks" in seen["failed"][0]
    assert seen["elsewhere"] == []
    assert all("400" in problem for problem in seen["problems"]), seen["problems"]  # the refused question alone
