"""Resizing equals transformers', cutting into patches can be undone, positions equal transformers' and count on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from lrkit.errors import DataError
from lrkit.families.common.mrope import mrope_positions
from lrkit.families.qwen2_vl.backbone import Qwen2VLBackbone
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from tests.tiny import IMAGE, tiny_backbone

WORD = IMAGE + 1
geometries = st.builds(
    lambda patch, merge, frames, low, span: ImageGeometry(
        patch_size=patch, merge_size=merge, temporal_patch_size=frames, min_pixels=low, max_pixels=low + span
    ),
    st.integers(1, 20), st.integers(1, 4), st.integers(1, 3), st.integers(1, 10**6), st.integers(0, 10**7),
)  # fmt: skip
sides = st.one_of(st.integers(1, 200), st.integers(1, 20_000))


@given(sides, sides, geometries)
def test_sizes_equal_smart_resize(width: int, height: int, geometry: ImageGeometry) -> None:
    try:
        theirs = smart_resize(height, width, geometry.factor, geometry.min_pixels, geometry.max_pixels)
    except ValueError:
        with pytest.raises(DataError, match="200 times"):
            geometry.seen_size(width, height)
        return
    new_width, new_height = geometry.seen_size(width, height)
    assert (new_height, new_width) == theirs
    assert new_width % geometry.factor == new_height % geometry.factor == 0
    frames, rows, columns = geometry.grid(width, height)
    assert (frames, rows * geometry.patch_size, columns * geometry.patch_size) == (1, new_height, new_width)
    assert geometry.num_visual_tokens((frames, rows, columns)) == new_width * new_height // geometry.factor**2


@given(sides, sides, geometries)
def test_a_picture_that_was_resized_is_resized_no_further(width: int, height: int, geometry: ImageGeometry) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    once = geometry.seen_size(width, height)
    within = geometry.min_pixels <= once[0] * once[1] <= geometry.max_pixels
    if within and max(once) <= 200 * min(once):
        assert geometry.seen_size(*once) == once


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_patches_hold_every_pixel_once_and_in_merge_order(
    rows: int, columns: int, patch: int, merge: int, seed: int
) -> None:
    """The number of a patch says where it comes from: squares of merged patches row by row, patches inside them too."""
    geometry = ImageGeometry(patch_size=patch, merge_size=merge, min_pixels=1)
    pixels = noise(rows * geometry.factor, columns * geometry.factor, seed)
    patches, grid = geometry.cut(Image.fromarray(pixels)), geometry.grid(pixels.shape[1], pixels.shape[0])
    assert len(patches) == geometry.num_patches(grid)
    assert grid == (1, rows * merge, columns * merge) and patches.shape == (rows * columns * merge**2, 3 * patch**2)
    again = np.empty_like(pixels)
    for number, one in enumerate(patches):
        square, inside = divmod(number, merge**2)
        top = (square // columns * merge + inside // merge) * patch
        left = (square % columns * merge + inside % merge) * patch
        again[top : top + patch, left : left + patch] = one.reshape(3, patch, patch).transpose(1, 2, 0)
    assert np.array_equal(again, pixels)


@pytest.fixture(scope="module")
def backbone() -> Qwen2VLBackbone:
    return tiny_backbone()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_patch_and_unpatch_undo_each_other_and_agree_with_the_runtimes(
    backbone: Qwen2VLBackbone, rows: int, columns: int, seed: int
) -> None:
    vision = backbone.model.config.vision_config
    geometry = ImageGeometry(
        patch_size=vision.patch_size, merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size, min_pixels=1, max_pixels=10**6,
    )  # fmt: skip
    picture = Image.fromarray(noise(rows * geometry.factor, columns * geometry.factor, seed))
    grid = geometry.grid(*picture.size)
    patches = torch.from_numpy(geometry.pixel_values(geometry.cut(picture)))
    image = backbone.unpatch(patches, grid)
    assert image.shape == (3, picture.height, picture.width)
    assert torch.equal(backbone.patch(image), patches)
    assert torch.equal(backbone.unpatch(backbone.patch(image), grid), image)


pieces = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 7), st.integers(1, 7)), max_size=4
)  # words before a picture, its rows and columns in merged patches


@given(pieces, st.integers(1, 9))
def test_positions_equal_get_rope_index(
    backbone: Qwen2VLBackbone, pictures: list[tuple[int, int, int]], words: int
) -> None:
    merge = backbone.model.config.vision_config.spatial_merge_size
    # Without a word between two pictures, transformers cannot tell where one ends.
    pictures = [(before + 1, rows, columns) for before, rows, columns in pictures]
    ids, grids = prompt_of(pictures, words, merge)
    theirs, _ = backbone.model.model.get_rope_index(
        torch.tensor([ids]),
        (torch.tensor([ids]) == IMAGE).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
    )
    assert torch.equal(torch.from_numpy(mrope_positions(ids, IMAGE, grids, merge)), theirs[:, 0].long())


def prompt_of(
    pictures: list[tuple[int, int, int]], words: int, merge: int
) -> tuple[list[int], list[tuple[int, int, int]]]:
    ids: list[int] = []
    for before, rows, columns in pictures:
        ids += [WORD] * before + [IMAGE] * (rows * columns)
    return ids + [WORD] * words, [(1, rows * merge, columns * merge) for _, rows, columns in pictures]


@given(pieces, st.integers(0, 9), st.integers(1, 4))
def test_positions_count_on(pictures: list[tuple[int, int, int]], words: int, merge: int) -> None:
    """Words count on in all three sections, behind everything before them; a picture spreads from its first place."""
    ids, grids = prompt_of(pictures, words, merge)
    positions = mrope_positions(ids, IMAGE, grids, merge)
    assert positions.shape == (3, len(ids))
    place, following = 0, 0
    for before, rows, columns in [*pictures, (words, 0, 0)]:
        text = positions[:, place : place + before]
        assert np.array_equal(text, np.tile(np.arange(following, following + before), (3, 1)))
        place, following = place + before, following + before
        spread = positions[:, place : place + rows * columns]
        if rows:
            assert set(map(tuple, spread.T.tolist())) == {
                (following, following + row, following + column) for row in range(rows) for column in range(columns)
            }
            assert [tuple(column) for column in spread.T.tolist()] == sorted(map(tuple, spread.T.tolist()))
            place, following = place + rows * columns, following + max(rows, columns)


@given(pieces, st.integers(0, 5), st.integers(1, 3), st.data())
def test_positions_refuse_image_tokens_without_a_picture(
    pictures: list[tuple[int, int, int]], words: int, merge: int, data: st.DataObject
) -> None:
    ids, grids = prompt_of(pictures, words, merge)
    at = data.draw(st.integers(0, len(ids)))
    with pytest.raises(DataError, match="image tokens"):
        mrope_positions([*ids[:at], IMAGE, *ids[at:]], IMAGE, grids, merge)
    if IMAGE in ids:
        ids.remove(IMAGE)
        with pytest.raises(DataError, match="image tokens"):
            mrope_positions(ids, IMAGE, grids, merge)
