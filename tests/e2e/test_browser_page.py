"""The page with the shipped model inside, in headless Chromium: fifty pictures, answers and steps equal to Python's."""

import base64
import contextlib
import functools
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrkit import Reasoner
from lrkit.data.board import draw_board
from lrkit.data.scans import scan_bank
from lrkit.data.trail import trail_set
from tests.browsing import BROWSER, browse, npm_install, run, screenshots
from tests.commands import lrkit

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"
PICTURES = 50
SEED = 7
# Room -> strokes of a digit, in shares of the room's tile: 7, 1, 4, 0 and 3.
STROKES = {
    0: [[(0.3, 0.15), (0.7, 0.15), (0.45, 0.85)]],
    1: [[(0.5, 0.1), (0.5, 0.9)]],
    2: [[(0.6, 0.1), (0.25, 0.6), (0.8, 0.6)], [(0.6, 0.4), (0.6, 0.9)]],
    6: [[(0.5, 0.12), (0.3, 0.3), (0.25, 0.6), (0.5, 0.88), (0.75, 0.6), (0.7, 0.3), (0.5, 0.12)]],
    8: [[(0.3, 0.2), (0.5, 0.1), (0.7, 0.25), (0.5, 0.45), (0.7, 0.65), (0.55, 0.88), (0.3, 0.8)]],
}


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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bundle, and the page around it."""
    npm_install(EXAMPLE)
    npm_install(BROWSER)
    folder = tmp_path_factory.mktemp("built")
    bundle, page = folder / "tiny-int4", folder / "dist"
    assert lrkit("export", "tiny", "--int4", "-o", bundle) == 0
    assert "MB" in run(["node", "build.mjs", str(bundle), str(page)], EXAMPLE)
    return bundle, page


@pytest.mark.long
def test_fifty_pictures_are_answered_as_in_python(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Also: regions of each step as it happens, no request to elsewhere, a page that reacts; without a network too."""
    bundle, page = built
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
        assert shown["live"] == steps  # each was drawn before the answer was there
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
    assert seen["elsewhere"] == [] and seen["problems"] == seen["barred"] == []


@pytest.mark.long
def test_signs_drawn_by_hand_are_read(built: tuple[Path, Path], tmp_path: Path) -> None:
    """With a pointer in five rooms of a board, and with keys in all ten."""
    bundle, page = built
    strokes = tmp_path / "strokes.json"
    strokes.write_text(json.dumps(STROKES), encoding="utf-8")
    with file_server(page) as address:
        seen = browse("pad.mjs", address, str(strokes), screenshots(tmp_path))
    reasoner = Reasoner.load(bundle)

    def signs(board: str) -> list[int]:
        with Image.open(io.BytesIO(base64.b64decode(board.partition(",")[2]))) as picture:
            return [int(reasoner.ask(picture.convert("RGB"), question.format(room)).text) for room in range(10)]

    question = "Take 1 hop. Which room are you in? Start in room {}"
    drawn, typed = signs(seen["drawn"]["picture"]), signs(seen["typed"]["picture"])
    assert {room: drawn[room] for room in STROKES} == {0: 7, 1: 1, 2: 4, 6: 0, 8: 3}
    assert typed == list(range(9, -1, -1))
    assert seen["drawn"]["said"] == "7" and seen["told"] == "Room 5." and seen["problems"] == seen["barred"] == []


def test_a_tile_is_drawn_as_the_data_set_draws_it() -> None:
    """Scans that pad.js lays on their rooms are the pixels of their board; a square of ink fills a scan."""
    bank, board = scan_bank("test"), draw_board("test", "main", np.random.default_rng(SEED))
    rows = [bank.ids.tolist().index(scan) for scan in board.scans]
    scans = [bank.pixels[row, 1:-1, 1:-1].ravel().tolist() for row in rows]
    code = (
        "import { tileOf, scanOf } from './pad.js';"
        "const scans = JSON.parse(process.argv[1]);"
        "const fine = new Uint8ClampedArray(4 * 64 * 64);"
        "for (let y = 20; y < 40; y++) for (let x = 30; x < 50; x++) fine[4 * (y * 64 + x) + 3] = 255;"
        "console.log(JSON.stringify({ tiles: scans.map((scan, room) => [...tileOf(scan, room)]),"
        " square: [...scanOf(fine)], nothing: scanOf(new Uint8ClampedArray(4 * 64 * 64)) }));"
    )
    found = json.loads(run(["node", "--input-type=module", "-e", code, json.dumps(scans)], EXAMPLE))
    tiles = np.array(found["tiles"]).reshape(2, 5, 16, 16, 4).swapaxes(1, 2).reshape(32, 80, 4)[..., :3]
    assert np.abs(tiles - board.pictures[0].astype(int)).max() <= 1
    assert np.allclose(found["square"], 1, atol=0.02) and found["nothing"] is None


def test_the_build_says_what_it_needs(tmp_path: Path) -> None:
    npm_install(EXAMPLE)
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(AssertionError, match="give a bundle of `lrkit export`"):
        run(["node", "build.mjs", str(tmp_path), str(tmp_path / "dist")], EXAMPLE)
    assert (tmp_path / "mine.txt").read_text() == "kept"
