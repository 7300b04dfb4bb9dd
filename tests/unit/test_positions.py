"""Positions of a prompt (lrkit/families/common/mrope.py): faults named for the user; numbers in tests/parity."""

import pytest

from lrkit.errors import CheckpointError, DataError
from lrkit.families.common.mrope import mrope_positions
from lrkit.families.qwen2_vl.geometry import ImageGeometry

IMAGE = 4


def test_text_counts_from_zero_in_all_sections() -> None:
    assert mrope_positions([9, 9, 9], IMAGE, [], 2).tolist() == [[0, 1, 2]] * 3


def test_an_image_spreads_over_rows_and_columns_and_text_goes_on_after_its_longer_side() -> None:
    got = mrope_positions([9, *[IMAGE] * 6, 9], IMAGE, [(1, 4, 6)], 2)
    assert got.tolist() == [[0, 1, 1, 1, 1, 1, 1, 4], [0, 1, 1, 1, 2, 2, 2, 4], [0, 1, 2, 3, 1, 2, 3, 4]]


def test_a_sequence_counts_visual_tokens_like_text_and_the_file_says_so() -> None:
    counted = ImageGeometry(visual_positions="sequence")
    assert counted.positions([9, *[IMAGE] * 6, 9], IMAGE, [(1, 4, 6)]).tolist() == [list(range(8))] * 3
    assert ImageGeometry.from_hf(counted.to_hf()) == counted
    assert "visual_positions" not in ImageGeometry().to_hf()
    with pytest.raises(DataError, match="image tokens"):
        counted.positions([IMAGE] * 5, IMAGE, [(1, 4, 6)])
    with pytest.raises(CheckpointError, match="visual_positions"):
        ImageGeometry.from_hf({"visual_positions": "snake"})


@pytest.mark.parametrize(
    ("ids", "grids"),
    [
        ([IMAGE] * 5, [(1, 4, 6)]),
        ([IMAGE] * 3 + [9] + [IMAGE] * 3, [(1, 4, 6)]),
        ([9, 9], [(1, 4, 6)]),
        ([IMAGE] * 7, [(1, 4, 6)]),
        ([9, IMAGE], []),
    ],
)
def test_image_tokens_that_do_not_match_the_images_are_refused(
    ids: list[int], grids: list[tuple[int, int, int]]
) -> None:
    with pytest.raises(DataError, match="image tokens"):
        mrope_positions(ids, IMAGE, grids, 2)
