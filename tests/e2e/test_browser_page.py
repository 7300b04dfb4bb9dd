"""The page with the shipped model inside, in headless Chromium: fifty pictures, answers and steps equal to Python's."""

import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrkit import Reasoner
from lrkit.data.trail import trail_set
from tests.browsing import BROWSER, browse, npm_install, run, screenshots
from tests.commands import lrkit

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"
PICTURES = 50
SEED = 7


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A plain file server."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def file_server(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_boards_are_those_of_the_data_set() -> None:
    questions = json.loads((EXAMPLE / "boards" / "questions.json").read_text(encoding="utf-8"))
    found = trail_set("main", "test", len(questions), seed=SEED)
    assert questions == [sample.question for sample in found]
    for index, sample in enumerate(found):
        with Image.open(EXAMPLE / "boards" / f"{index}.png") as board:
            assert np.array_equal(np.asarray(board), np.asarray(sample.images[0]))


@pytest.mark.long
def test_fifty_pictures_are_answered_as_in_python(tmp_path: Path) -> None:
    """Also: regions of each step, no request to elsewhere, a page that reacts, and all of it without a network."""
    npm_install(EXAMPLE)
    npm_install(BROWSER)
    bundle, page = tmp_path / "tiny-int4", tmp_path / "dist"
    assert lrkit("export", "tiny", "--int4", "-o", bundle) == 0
    assert "MB" in run(["node", "build.mjs", str(bundle), str(page)], EXAMPLE)
    asked = []
    for index, sample in enumerate(trail_set("main", "test", PICTURES, seed=SEED + 1)):
        picture = sample.images[0]
        assert isinstance(picture, Image.Image)
        picture.save(tmp_path / f"{index}.png")
        mode = "cot" if index % 5 == 4 else "latent"
        asked.append({"picture": str(tmp_path / f"{index}.png"), "question": sample.question, "mode": mode})
    questions = tmp_path / "asked.json"
    questions.write_text(json.dumps(asked), encoding="utf-8")
    with file_server(page) as address:
        seen = browse("boards.mjs", address, str(questions), screenshots(tmp_path))
    reasoner = Reasoner.load(bundle)
    for one, shown in zip(asked, seen["found"], strict=True):
        answer = reasoner.baseline(one["mode"]).ask(one["picture"], one["question"], one["mode"])
        assert shown["said"] == answer.text, one
        steps = answer.latent_steps
        assert (f"{steps} latent step" in shown["facts"]) == (steps > 0) and len(shown["steps"]) == steps
        with Image.open(one["picture"]) as picture:
            width, height = picture.size
        for boxes, regions in zip(shown["steps"], answer.regions, strict=True):
            expected = [
                [100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height]
                for left, top, right, bottom in (region.box for region in regions)
            ]
            assert np.abs(np.subtract(boxes, expected)).max() < 1e-3
    board = json.loads((EXAMPLE / "boards" / "questions.json").read_text(encoding="utf-8"))[3]
    assert seen["offline"] == reasoner.ask(EXAMPLE / "boards" / "3.png", board).text
    assert seen["elsewhere"] == [] and seen["problems"] == []


def test_the_build_says_what_it_needs(tmp_path: Path) -> None:
    npm_install(EXAMPLE)
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(AssertionError, match="give a bundle of `lrkit export`"):
        run(["node", "build.mjs", str(tmp_path), str(tmp_path / "dist")], EXAMPLE)
    assert (tmp_path / "mine.txt").read_text() == "kept"
