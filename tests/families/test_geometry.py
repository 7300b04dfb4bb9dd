"""What every geometry keeps, whatever family it is of, in all cuts that its case and its published folders have."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import MAX_PATCHES, MAX_PROMPT_TOKENS, Limits
from lrkit.errors import DataError, UserError
from lrkit.families.protocols import Geometry, Grid, Size
from lrkit.families.table import geometry_of
from lrkit.runtime.encode.fitting import fit_pictures
from tests.conftest import MadeOnce
from tests.fake_family import installed
from tests.families.cases import NOT_PUBLISHED, ROWS, FamilyCase, case_of
from tests.families.conftest import noise, written

IMAGE, MARKER = 3, 4
SIZES: list[Size] = [(64, 64), (80, 32), (37, 91), (1, 1), (200, 11), (640, 480)]
PLACES = 41
"""Points along each side at which is counted how many tokens cover them."""


def cuts() -> list[tuple[str, str]]:
    """(family, cut): those of its case, then those of its published folders."""
    cases = [case_of(name) for name in (*ROWS, *NOT_PUBLISHED)]
    return [(case.name, cut) for case in cases for cut in (*case.geometries, *case.variants)]


@pytest.fixture(params=cuts(), ids=lambda pair: f"{pair[0]}, {pair[1]}")
def cut(request: pytest.FixtureRequest, made_once: MadeOnce) -> tuple[FamilyCase, Geometry]:
    name, label = request.param
    case = case_of(name)
    if label in case.geometries:
        return case, case.geometries[label]
    with installed():
        return case, geometry_of(name).from_folder(written(case, label, made_once))


@pytest.fixture
def geometry(cut: tuple[FamilyCase, Geometry]) -> Geometry:
    made = cut[1]
    return made.with_marker_ids([[MARKER]] * len(made.markers))


def prompt_of(geometry: Geometry, sizes: list[Size]) -> tuple[list[int], list[Grid]]:
    """Ids of a prompt with pictures of these sizes between words, and their grids."""
    grids = [geometry.grid(*size) for size in sizes]
    pictures = [geometry.picture_ids(grid, IMAGE) for grid in grids]
    return [9, *(token for ids in pictures for token in (*ids, 8)), 7], grids


def test_counts_of_a_picture_agree(geometry: Geometry) -> None:
    for size in SIZES:
        grid = geometry.grid(*size)
        ids = geometry.picture_ids(grid, IMAGE)
        assert len(ids) == geometry.num_prompt_tokens(grid) and ids.count(IMAGE) == geometry.num_visual_tokens(grid)
        assert geometry.num_patches(grid) == geometry.num_visual_tokens(grid) * geometry.patches_per_token
        assert len(ids) <= geometry.most_prompt_tokens(geometry.num_patches(grid))
        assert geometry.num_patches(grid) <= geometry.most_patches(1)
        assert geometry.grid(*geometry.seen_size(*size)) == grid, "what was resized stays"
        patches = geometry.cut(noise(*size))
        assert patches.shape == (geometry.num_patches(grid), geometry.patch_bytes) and patches.dtype == np.uint8
        assert len(geometry.pixel_values(patches)) == len(patches)


def test_no_picture_is_smaller_than_the_smallest(geometry: Geometry) -> None:
    least = geometry.num_patches(geometry.smallest_grid)
    assert all(geometry.num_patches(geometry.grid(*size)) >= least > 0 for size in SIZES)


def covered(boxes: np.ndarray, part: tuple[float, float, float, float]) -> np.ndarray:
    """How many boxes (N, 4) hold each of a raster of points inside `part`."""
    share = (np.arange(PLACES) + 0.377) / PLACES
    x = part[0] + share * (part[2] - part[0])
    y = part[1] + share * (part[3] - part[1])
    wide = (boxes[:, None, 0] <= x) & (x < boxes[:, None, 2])
    high = (boxes[:, None, 1] <= y) & (y < boxes[:, None, 3])
    return np.einsum("nx,ny->yx", wide.astype(int), high.astype(int))


def test_the_boxes_of_a_picture_tile_it(cut: tuple[FamilyCase, Geometry], geometry: Geometry) -> None:
    """Once; or as often as the family shows it, whole and in parts. A family that crops tiles what it sees."""
    case, views = cut[0], set[int]()
    for size in SIZES:
        grid = geometry.grid(*size)
        boxes = np.array([geometry.token_box(index, grid, size) for index in range(geometry.num_visual_tokens(grid))])
        assert boxes.min() >= 0 and boxes[:, 2].max() <= size[0] + 1e-6 and boxes[:, 3].max() <= size[1] + 1e-6
        assert ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).all()
        left, top, right, bottom = boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max()
        if not case.crops:
            assert (left, top, right, bottom) == pytest.approx((0, 0, *size))
        times = set(covered(boxes, (left, top, right, bottom)).ravel().tolist())
        assert len(times) == 1, "every point is covered equally often"
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        assert areas.sum() == pytest.approx(min(times) * (right - left) * (bottom - top))
        views |= times
        assert len({tuple(box) for box in boxes.round(6)}) == len(boxes) or case.views > 1
    assert views <= set(range(1, case.views + 1))


def test_a_program_gets_what_it_declares(geometry: Geometry) -> None:
    spec = IoSpec(form="program", inputs=geometry.program_inputs, outputs=())
    for sizes in ([], [(64, 64)], [(80, 32), (37, 91), (64, 64)]):
        ids, grids = prompt_of(geometry, sizes)
        pieces = [geometry.cut(Image.new("RGB", size)) for size in sizes]
        patches = np.concatenate(pieces) if pieces else None
        feed = geometry.program_feed(ids, IMAGE, grids, patches)
        assert spec.problems(feed) == []
        assert feed["position_ids"].shape == (geometry.axes, len(ids))
        again = geometry.program_feed(ids, IMAGE, grids, patches)
        assert all(np.array_equal(feed[name], again[name]) for name in feed)


def test_positions_refuse_pictures_of_another_prompt(geometry: Geometry) -> None:
    ids, grids = prompt_of(geometry, [(80, 32), (64, 64)])
    other = geometry.grid(640, 480)
    of_another_size = [[grids[0], other]] if other != grids[1] else []
    for wrong in (grids[:1], [*grids, grids[0]], *of_another_size):
        with pytest.raises(DataError):
            geometry.positions(ids, IMAGE, wrong)


def test_pictures_fit_limits_that_have_room_for_the_smallest(
    cut: tuple[FamilyCase, Geometry], geometry: Geometry
) -> None:
    chance, shrunk = random.Random(0), 0
    least = geometry.smallest_grid
    most = min(750, geometry.most_patches(1) // geometry.num_patches(least))
    for _ in range(40):
        sizes = [(chance.randint(1, 900), chance.randint(30, 900)) for _ in range(chance.randint(1, 4))]
        sizes = [(max(width, height // 25), height) for width, height in sizes]
        patches = min(chance.randint(1, most) * geometry.num_patches(least) * len(sizes), MAX_PATCHES)
        tokens = min(chance.randint(24, 3000) * geometry.num_prompt_tokens(least) * len(sizes), MAX_PROMPT_TOKENS)
        limits = Limits(
            max_prompt_tokens=tokens, max_patches=patches, max_images=9, max_latent_steps=1, max_new_tokens=1
        )
        fitted = fit_pictures(sizes, geometry, limits)
        grids = [used.grid(*size) for used, size in zip(fitted.geometries, sizes, strict=True)]
        assert sum(map(geometry.num_patches, grids)) <= patches
        assert sum(map(geometry.num_prompt_tokens, grids)) <= tokens
        shrunk += any(one.limit != "max_pixels" for one in fitted.resized)
    assert bool(shrunk) is ("smaller_pictures" not in cut[0].cannot)


def test_no_limit_on_pixels_below_a_token(geometry: Geometry) -> None:
    assert geometry.with_max_pixels(None) is geometry
    with pytest.raises(UserError, match="max_pixels is 1;"):
        geometry.with_max_pixels(1)


def test_the_processors_file_gives_the_same_geometry(cut: tuple[FamilyCase, Geometry], tmp_path: Path) -> None:
    geometry = cut[1]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(geometry.to_hf()), encoding="utf-8")
    assert type(geometry).from_folder(tmp_path) == geometry


def test_what_is_refused_is_refused_wherever_a_size_is_asked(cut: tuple[FamilyCase, Geometry]) -> None:
    case, geometry = cut
    for size in case.refused:
        for ask in (geometry.check_size, geometry.grid, geometry.seen_size):
            with pytest.raises(DataError, match=f"{size[0]} x {size[1]}"):
                ask(*size)
