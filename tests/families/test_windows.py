"""Pictures seen small in the prompt and in full in their windows, in every family: cut, counted and limited alike; a
family that cannot says so in one sentence."""

import numpy as np
import pytest
from PIL import Image

from lrkit.contract.settings import ReplaySettings
from lrkit.errors import UserError
from lrkit.families.protocols import Geometry
from lrkit.runtime.encode.fitting import fit_pictures
from tests.families.cases import FamilyCase
from tests.families.conftest import noise
from tests.families.test_geometry import cut, cuts

__all__ = ["cut"]
ZOOMS = (2, 3)
SIZES = [(300, 200), (41, 333), (5, 5)]


@pytest.fixture(params=ZOOMS)
def zoomed(request: pytest.FixtureRequest, cut: tuple[FamilyCase, Geometry]) -> Geometry:
    """A geometry with room for one window at least; skips a family without windows."""
    plain, zoom = cut[1], request.param
    try:
        return plain.with_zoom(zoom)
    except UserError as error:
        if "max_pixels" not in str(error):
            pytest.skip("has no windows; the sentence is tested below")
    return plain.with_max_pixels(1 << 20).with_zoom(zoom)


def test_each_visual_token_has_a_window(zoomed: Geometry) -> None:
    for size in SIZES:
        picture = noise(*size)
        windows, count = zoomed.cut_windows(picture), zoomed.num_visual_tokens(zoomed.grid(*size))
        assert len(zoomed.cut(picture)) == zoomed.num_patches(zoomed.grid(*size))
        assert windows.shape == (count, zoomed.num_patches(zoomed.window_grid), zoomed.patch_bytes)


def test_windows_are_the_parts_of_the_full_picture(cut: tuple[FamilyCase, Geometry], zoomed: Geometry) -> None:
    # The full picture, and the boxes of the prompt's tokens in it: an independent way to the same bytes.
    for size in SIZES:
        picture = noise(*size).resize(zoomed.seen_size(*size))
        if zoomed.seen_size(*picture.size) != picture.size:
            continue  # the rule of some sizes rounds twice
        grid, windows = zoomed.grid(*picture.size), zoomed.cut_windows(picture)
        for index in {0, len(windows) // 2, len(windows) - 1}:
            left, top, right, bottom = (round(side) for side in zoomed.token_box(index, grid, picture.size))
            alone = cut[1].with_max_pixels((right - left) * (bottom - top))
            assert np.array_equal(windows[index], alone.cut(picture.crop((left, top, right, bottom))))


def test_the_picture_in_the_prompt_is_the_small_one(cut: tuple[FamilyCase, Geometry], zoomed: Geometry) -> None:
    size = (300, 200)
    wide, high = zoomed.seen_size(*size)
    zoom = round((zoomed.num_patches(zoomed.window_grid) / zoomed.patches_per_token) ** 0.5)
    small = noise(*size).resize((wide // zoom, high // zoom), Image.Resampling(zoomed.resample))
    plain = cut[1].with_max_pixels(1 << 24)
    if small.size == plain.seen_size(*small.size):
        assert np.array_equal(zoomed.cut(noise(*size)), plain.cut(small))


def test_max_pixels_is_that_of_the_full_picture(zoomed: Geometry) -> None:
    for size in [(640, 480), (4000, 3000)]:
        wide, high = zoomed.seen_size(*size)
        limited = zoomed.with_max_pixels(wide * high)
        assert limited.seen_size(*size)[0] * limited.seen_size(*size)[1] <= wide * high
        assert zoomed.num_patches(zoomed.grid(*size)) <= zoomed.most_patches(1)


def test_a_window_is_the_least_that_max_pixels_may_be(zoomed: Geometry) -> None:
    with pytest.raises(UserError, match=r"max_pixels is 5; a window .* so give at least \d+$"):
        zoomed.with_max_pixels(5)


def test_limits_of_a_bundle_hold_for_the_picture_in_the_prompt(zoomed: Geometry) -> None:
    size = (900, 700)
    tokens = zoomed.num_visual_tokens(zoomed.grid(*size))
    if tokens < 2:
        return
    within = zoomed.within(size, 1 << 20, tokens // 2)
    assert 1 <= within.num_visual_tokens(within.grid(*size)) <= max(1, tokens // 2)
    assert len(fit_pictures([size, (8, 8)], zoomed).geometries) == 2


def test_no_file_of_an_image_processor_holds_the_zoom(zoomed: Geometry) -> None:
    assert "zoom" not in zoomed.to_hf() and "zoom" not in zoomed.to_processor()


def test_a_family_without_windows_says_so_in_one_sentence(cut: tuple[FamilyCase, Geometry]) -> None:
    case, geometry = cut
    assert geometry.with_zoom(ReplaySettings().fine_zoom) == geometry
    try:
        geometry.with_max_pixels(None).with_zoom(2)
    except UserError as error:
        windows = "max_pixels" in str(error)
        assert windows or str(error).startswith(f"replay.source is fine, but pictures of {case.name} ")
        assert str(error).count(";") == 1 and "\n" not in str(error)


def test_some_families_have_windows_and_some_have_not() -> None:
    assert len({name for name, _ in cuts()}) > 2
