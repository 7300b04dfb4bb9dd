"""What every family must keep, whatever it is: the two that there are, Qwen2-VL and the fake one, in several sizes."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lrkit import Reasoner
from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import Limits
from lrkit.errors import DataError, UnknownNameError, UserError
from lrkit.families.protocols import Geometry
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.families.table import FAMILIES, geometry_of, load_part
from lrkit.runtime.encode.fitting import fit_pictures
from tests.bundles import QUESTION, picture
from tests.fake_family import NAME, installed
from tests.fake_family.geometry import RowwiseGeometry

GEOMETRIES: dict[str, Geometry] = {
    "published": ImageGeometry(),
    "small": ImageGeometry(patch_size=4, merge_size=2, min_pixels=64, max_pixels=4096),
    "not merged": ImageGeometry(patch_size=8, merge_size=1, temporal_patch_size=1, min_pixels=64, max_pixels=9000),
    "rowwise": RowwiseGeometry(),
    "rowwise, small": RowwiseGeometry(patch_size=5, max_pixels=900),
}
IMAGE, MARKER = 3, 4
SIZES = [(64, 64), (80, 32), (37, 91), (1, 1), (200, 11), (640, 480)]


@pytest.fixture(params=GEOMETRIES)
def geometry(request: pytest.FixtureRequest) -> Geometry:
    return GEOMETRIES[request.param]


def prompt_of(geometry: Geometry, sizes: list[tuple[int, int]]) -> tuple[list[int], list[tuple[int, ...]]]:
    """Ids of a prompt with pictures of these sizes between words, and their grids."""
    grids = [geometry.grid(*size) for size in sizes]
    geometry = geometry.with_marker_ids([[MARKER]] * len(geometry.markers))
    pictures = [geometry.picture_ids(grid, IMAGE) for grid in grids]
    return [9, *(token for ids in pictures for token in (*ids, 8)), 7], grids


@pytest.mark.parametrize("size", SIZES)
def test_counts_of_a_picture_agree(geometry: Geometry, size: tuple[int, int]) -> None:
    grid = geometry.grid(*size)
    ids = geometry.with_marker_ids([[MARKER]] * len(geometry.markers)).picture_ids(grid, IMAGE)
    assert len(ids) == geometry.num_prompt_tokens(grid) and ids.count(IMAGE) == geometry.num_visual_tokens(grid)
    assert geometry.num_patches(grid) == geometry.num_visual_tokens(grid) * geometry.patches_per_token
    assert len(ids) <= geometry.most_prompt_tokens(geometry.num_patches(grid))
    assert geometry.grid(*geometry.seen_size(*size)) == grid, "what was resized stays"
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    patches = geometry.cut(Image.fromarray(pixels))
    assert patches.shape == (geometry.num_patches(grid), geometry.patch_bytes) and patches.dtype == np.uint8
    assert len(geometry.pixel_values(patches)) == len(patches)


@pytest.mark.parametrize("size", SIZES)
def test_the_boxes_of_a_picture_tile_it(geometry: Geometry, size: tuple[int, int]) -> None:
    grid = geometry.grid(*size)
    boxes = np.array([geometry.token_box(index, grid, size) for index in range(geometry.num_visual_tokens(grid))])
    assert boxes.min() >= 0 and boxes[:, 2].max() <= size[0] + 1e-6 and boxes[:, 3].max() <= size[1] + 1e-6
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert areas.min() > 0 and areas.sum() == pytest.approx(size[0] * size[1])
    assert len({tuple(box) for box in boxes.round(6)}) == len(boxes)


def test_a_program_gets_what_it_declares(geometry: Geometry) -> None:
    spec = IoSpec(form="program", inputs=geometry.program_inputs, outputs=())
    for sizes in ([], [(64, 64)], [(80, 32), (37, 91), (64, 64)]):
        ids, grids = prompt_of(geometry, sizes)
        cut = [geometry.cut(Image.new("RGB", size)) for size in sizes]
        feed = geometry.program_feed(ids, IMAGE, grids, np.concatenate(cut) if cut else None)
        assert spec.problems(feed) == []
        assert feed["position_ids"].shape == (geometry.axes, len(ids))
        again = geometry.program_feed(ids, IMAGE, grids, np.concatenate(cut) if cut else None)
        assert all(np.array_equal(feed[name], again[name]) for name in feed)


def test_positions_refuse_pictures_of_another_prompt(geometry: Geometry) -> None:
    ids, grids = prompt_of(geometry, [(80, 32), (64, 64)])
    for wrong in (grids[:1], [*grids, grids[0]], [grids[0], geometry.grid(640, 480)]):
        with pytest.raises(DataError):
            geometry.positions(ids, IMAGE, wrong)


def test_pictures_fit_limits_that_have_room_for_the_smallest(geometry: Geometry) -> None:
    chance, shrunk = random.Random(0), 0
    for _ in range(40):
        sizes = [(chance.randint(1, 900), chance.randint(30, 900)) for _ in range(chance.randint(1, 4))]
        sizes = [(max(width, height // 25), height) for width, height in sizes]
        patches, tokens = chance.randint(24, 3000) * len(sizes), chance.randint(24, 3000) * len(sizes)
        limits = Limits(
            max_prompt_tokens=tokens, max_patches=patches, max_images=9, max_latent_steps=1, max_new_tokens=1
        )
        fitted = fit_pictures(sizes, geometry, limits)
        grids = [used.grid(*size) for used, size in zip(fitted.geometries, sizes, strict=True)]
        assert sum(map(geometry.num_patches, grids)) <= patches
        assert sum(map(geometry.num_prompt_tokens, grids)) <= tokens
        shrunk += any(one.limit != "max_pixels" for one in fitted.resized)
    assert shrunk


def test_no_limit_on_pixels_below_a_token(geometry: Geometry) -> None:
    assert geometry.with_max_pixels(None) is geometry
    with pytest.raises(UserError, match="max_pixels is 1;"):
        geometry.with_max_pixels(1)


def test_the_processors_file_gives_the_same_geometry(geometry: Geometry, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(geometry.to_hf()), encoding="utf-8")
    assert type(geometry).from_folder(tmp_path) == geometry


def test_a_row_is_found_by_name_and_only_while_it_is_there() -> None:
    with installed():
        assert geometry_of(NAME) is RowwiseGeometry
    with pytest.raises(UnknownNameError, match=f"unknown backbone '{NAME}'; known: qwen2_vl"):
        load_part(NAME, "geometry")


def test_a_part_that_a_family_lacks_is_named() -> None:
    with installed(), pytest.raises(UnknownNameError, match=f"{NAME} has no part tune"):
        load_part(NAME, "tune")


def test_parts_that_serve_bundles_need_no_torch() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'onnx'): sys.modules[name] = None\n"
        "from lrkit.families.table import FAMILIES, load_part\n"
        "for family in FAMILIES:\n"
        "    for part in ('layout', 'geometry', 'prompt', 'fresh'): load_part(family, part)\n"
    )
    assert len(FAMILIES) > 0
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_bundle_that_names_no_family_is_the_first_familys(own_bundle: Path) -> None:
    """As they were written before the family was recorded."""
    before = Reasoner.load(own_bundle).ask(picture(), QUESTION)
    file = own_bundle / "bundle.json"
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert values.pop("family") == "qwen2_vl" and values.pop("patches_per_token") == 4
    file.write_text(json.dumps({**values, "merge_size": 2}), encoding="utf-8")
    after = Reasoner.load(own_bundle, verify=False).ask(picture(), QUESTION)
    assert (after.text, after.regions) == (before.text, before.regions)
