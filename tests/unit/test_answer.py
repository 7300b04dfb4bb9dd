"""Replayed tokens as boxes in the original picture, answers as JSON, and the drawn trace."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrkit.errors import DataError, FileError
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.answer.regions import token_regions
from lrkit.runtime.answer.trace import draw_trace

GEOMETRY = ImageGeometry(patch_size=4, merge_size=2)
BOARD_GRID, BOARD_SIZE = (1, 8, 20), (80, 32)


def answer(images: tuple[Image.Image, ...], *steps: list[int], grids=None, sizes=None, **values) -> Answer:
    grids, sizes = grids or [BOARD_GRID], sizes or [BOARD_SIZE]
    regions = tuple(tuple(token_regions(step, grids, GEOMETRY, sizes)) for step in steps)
    given = {"latent_steps": len(steps), "question": "Take 2 hops. Start in room 3", "images": images, **values}
    return Answer("Answer: 7", "7", "latent", regions=regions, **given)


def test_tokens_run_row_by_row_over_the_merged_grid() -> None:
    first, middle, last = token_regions([0, 11, 39], [BOARD_GRID], GEOMETRY, [BOARD_SIZE], [0.5, 0.3, 0.2])
    assert first.box == (0, 0, 8, 8)
    assert middle.box == (8, 8, 16, 16)
    assert last.box == (72, 24, 80, 32)
    assert [region.weight for region in (first, middle, last)] == [0.5, 0.3, 0.2]


def test_boxes_are_in_pixels_of_the_original_not_of_the_processed_picture() -> None:
    (region,) = token_regions([39], [BOARD_GRID], GEOMETRY, [(1000, 100)])
    assert region.box == (900, 75, 1000, 100)


def test_tokens_of_several_pictures_are_counted_on() -> None:
    regions = token_regions([39, 40, 45], [BOARD_GRID, (1, 4, 6)], GEOMETRY, [BOARD_SIZE, (24, 16)])
    assert [region.image for region in regions] == [0, 1, 1]
    assert regions[1].box == (0, 0, 8, 8)
    assert regions[2].box == (16, 8, 24, 16)


@pytest.mark.parametrize("index", [40, -1])
def test_a_token_outside_the_pictures_is_an_error(index: int) -> None:
    with pytest.raises(IndexError, match=r"outside the prompt's pictures, which have 40 tokens|visual token -1"):
        token_regions([index], [BOARD_GRID], GEOMETRY, [BOARD_SIZE])


def test_an_answer_is_json_without_its_pictures() -> None:
    one = answer((Image.new("RGB", BOARD_SIZE),), [0, 1], depths=(0, 5), timings={"total": 0.25})
    values = json.loads(json.dumps(one.to_dict()))
    assert values["answer"] == "7"
    assert values["regions"][0][1] == {"image": 0, "box": [8.0, 0.0, 16.0, 8.0], "weight": 1.0}
    assert values["depths"] == [0, 5]
    assert "images" not in values
    assert str(one) == "7"
    assert str(Answer("no idea", None, "cot")) == "no idea"


def test_only_the_replayed_part_keeps_its_colour_in_the_trace() -> None:
    """A black picture fades to grey; the replayed tile stays dark under its tint, and the line around it is orange."""
    page = np.asarray(draw_trace(answer((Image.new("RGB", BOARD_SIZE),), [0], [39]))).astype(int)
    grey = (np.abs(page - 115) <= 1).all(-1)
    orange = (page == (255, 168, 0)).all(-1)
    dark = (page[:, :, 2] == 0) & ~orange
    assert grey.sum() == 2 * 39 * 40 * 40 - 2 * (40 * 3 * 2 + 9)
    assert dark.sum() == 2 * 40 * 40
    # Each tile lies in a corner of its picture, whose frame has room for the line.
    assert orange.sum() == 2 * ((40 + 6) ** 2 - 40 * 40)


def test_one_panel_per_latent_step_in_even_rows() -> None:
    board = Image.new("RGB", BOARD_SIZE)
    heights = [draw_trace(answer((board,), *[[0]] * steps)).height for steps in (1, 2, 3, 4, 5)]
    assert heights[0] == heights[1] == heights[2] < heights[3] == heights[4]


@pytest.mark.parametrize("size", [(1, 1), (3, 600), (4000, 20), (900, 1400)])
def test_pictures_of_any_size_make_a_page_of_sensible_size(size: tuple[int, int]) -> None:
    page = draw_trace(answer((Image.new("RGB", size, "red"),), [0], [3], grids=[(1, 4, 4)], sizes=[size]))
    assert 500 <= page.width <= 1500
    assert page.height <= 1500
    assert ((np.asarray(page) == (255, 168, 0)).all(-1)).any()


def test_answers_without_pictures_or_latent_steps_are_drawn_too() -> None:
    assert draw_trace(answer(())).size[0] > 0
    plain = draw_trace(answer((Image.new("RGB", BOARD_SIZE, "blue"),)))
    assert ((np.asarray(plain) == (0, 0, 255)).all(-1)).sum() == 400 * 160
    words = draw_trace(answer((), question="Why " * 300 + "w" * 500))
    assert words.height < 900


def test_two_pictures_share_a_panel() -> None:
    boards = (Image.new("RGB", BOARD_SIZE, "blue"), Image.new("RGB", (24, 16), "green"))
    one = answer(boards, [0, 44], grids=[BOARD_GRID, (1, 4, 6)], sizes=[BOARD_SIZE, (24, 16)])
    assert draw_trace(one).width > 2 * 380


def test_a_trace_is_saved_or_the_reason_given(tmp_path: Path) -> None:
    one = answer((Image.new("RGB", BOARD_SIZE),), [0])
    one.save_trace(tmp_path / "trace.png")
    with Image.open(tmp_path / "trace.png") as saved:
        assert saved.size == draw_trace(one).size
    with pytest.raises(DataError, match=r"use \.png"):
        one.save_trace(tmp_path / "trace.what")
    with pytest.raises(FileError, match=r"give another name|not a folder"):
        one.save_trace(tmp_path / "trace.png" / "inside.png")


def test_a_trace_shows_the_small_picture_that_was_read_and_the_passes_of_each_step() -> None:
    """A checkered picture is grey at half its size: the panel in front has no detail, the others have."""
    checks = np.indices(BOARD_SIZE[::-1]).sum(0) % 2 * 255
    board = Image.fromarray(checks.astype(np.uint8)).convert("RGB")
    whole, closer = answer((board,), [0]), answer((board,), [0], read_sizes=((40, 16),))
    plain, drawn = (np.asarray(draw_trace(one)) for one in (whole, closer))
    assert drawn.shape[1] > plain.shape[1] or drawn.shape[0] > plain.shape[0]
    panel = drawn[-180:-80, 60:300]
    assert panel.std() < 20 and panel.mean() < 200
    told = [np.asarray(draw_trace(answer((board,), [0], step_depths=depths))) for depths in ((), (12,))]
    assert told[0].shape == told[1].shape and (told[0] != told[1]).any()
