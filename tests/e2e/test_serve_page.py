"""The page of `lrkit serve` in headless Chromium, by keyboard: what it shows is what the SDK answers."""

from pathlib import Path

import numpy as np
from PIL import Image

from lrkit import Reasoner
from tests.browsing import BROWSER, browse, npm_install, screenshots
from tests.serving import serving

ROOMS = BROWSER.parents[1] / "docs" / "images" / "rooms.png"
QUESTION = "Take 4 hops. Which room are you in? Start in room 3"


def test_the_page_shows_the_answer_its_steps_and_where_they_looked(tmp_path: Path) -> None:
    npm_install(BROWSER)
    with serving("tiny") as found:
        address = f"http://127.0.0.1:{found.port}/"
        seen = browse("page.mjs", address, str(ROOMS), QUESTION, screenshots(tmp_path))
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
    assert seen["barred"] == []
    assert all("400" in problem for problem in seen["problems"]), seen["problems"]  # the refused question alone
