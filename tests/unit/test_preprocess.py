"""Loading pictures of every kind, the words for what cannot be loaded, and reading an image processor's file."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrkit.errors import CapacityError, CheckpointError, DataError
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.pictures.load import load_image
from tests.preprocess import preprocess

GEOMETRY = ImageGeometry(patch_size=4, min_pixels=64, max_pixels=80 * 32)


def test_patches_stand_in_merge_order_and_hold_channel_frame_row_column() -> None:
    pixels = np.arange(16 * 8 * 3, dtype=np.uint8).reshape(16, 8, 3)
    geometry = GEOMETRY.model_copy(
        update={"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0), "rescale_factor": 1.0}
    )
    patches = geometry.cut(Image.fromarray(pixels))
    assert geometry.grid(8, 16) == (1, 4, 2) and patches.dtype == np.uint8
    patches = geometry.pixel_values(patches)
    # The second merge block of a column of two begins at row 2; its last patch is row 3, column 1.
    last = patches[7].reshape(3, 2, 4, 4)
    for channel in range(3):
        for frame in range(2):
            np.testing.assert_array_equal(last[channel, frame], pixels[12:16, 4:8, channel])


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(path)
    assert load_image(path).getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_greyscale_keeps_its_tones_where_pillow_alone_clips_them_to_white(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(path)
    assert np.asarray(load_image(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_an_upright_picture_in_memory_is_taken_as_it_is() -> None:
    image = Image.new("RGB", (80, 32), (1, 2, 3))
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(image))


def _truncated_png(tmp_path: Path) -> Path:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    path = tmp_path / "cut.png"
    path.write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    return path


def _corrupt_jpeg(tmp_path: Path) -> Path:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    return path


def _headless_jpeg(tmp_path: Path) -> Path:
    path = _corrupt_jpeg(tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    return path


def _text_file(tmp_path: Path) -> Path:
    path = tmp_path / "words.png"
    path.write_text("not a picture")
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_truncated_png, "damaged or cut off"),
        (_corrupt_jpeg, "damaged or cut off"),
        (_headless_jpeg, "damaged or cut off"),
        (_text_file, "is not an image"),
        (lambda folder: folder / "missing.png", "there is no such image file"),
        (lambda folder: folder, "is a folder"),
    ],
)
def test_an_unusable_file_is_named_in_one_sentence(make, says: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(DataError, match=says) as error:
        load_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="floating-point"):
        load_image(Image.new("F", (4, 4)))


def test_a_picture_over_the_pixel_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = _truncated_png(tmp_path)  # decoding it would fail with another error
    with pytest.raises(CapacityError, match=r"64 x 64 pixels, above the limit of 1000"):
        load_image(path, max_input_pixels=1000)


def test_a_picture_larger_than_pillow_itself_allows_is_a_capacity_error(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(CapacityError, match="is larger than"):
        load_image(path)


def test_an_8k_picture_is_processed_within_the_limits() -> None:
    patches, grid = preprocess(Image.new("L", (8192, 8192), 128), GEOMETRY)
    assert grid[1] * grid[2] * 16 <= GEOMETRY.max_pixels
    assert patches.shape == (grid[1] * grid[2], 2 * GEOMETRY.patch_bytes)


@pytest.mark.parametrize("size", [(201, 1), (3, 700)])
def test_an_extreme_aspect_ratio_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="200 times the shorter"):
        preprocess(Image.new("RGB", size), GEOMETRY)


@pytest.mark.slow
def test_a_small_picture_takes_less_than_a_fifth_of_a_millisecond() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 80, 3), dtype=np.uint8))

    def seconds() -> float:
        started = time.perf_counter()
        preprocess(image, GEOMETRY)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(200)) < 0.0002


def test_visual_tokens_are_counted_after_the_merge() -> None:
    assert GEOMETRY.grid(80, 32) == (1, 8, 20)
    assert GEOMETRY.num_visual_tokens((1, 8, 20)) == 40


def test_both_ways_to_write_the_pixel_limits_are_read() -> None:
    old = ImageGeometry.from_hf({"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14})
    new = ImageGeometry.from_hf({"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "patch_size": 14})
    assert old == new
    assert old.max_pixels == 12845056


def test_steps_that_are_switched_off_are_neutral() -> None:
    geometry = ImageGeometry.from_hf({"do_rescale": False, "do_normalize": False, "image_mean": [0.5, 0.5, 0.5]})
    assert (geometry.rescale_factor, geometry.image_mean, geometry.image_std) == (1.0, (0.0,) * 3, (1.0,) * 3)


def test_the_image_part_of_a_processor_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": GEOMETRY.to_hf()}))
    assert ImageGeometry.from_folder(tmp_path) == GEOMETRY


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
        ({"do_resize": False}, "do_resize"),
        ({"patch_size": 0}, "patch_size"),
        ({"min_pixels": 100, "max_pixels": 10}, "min_pixels is 100"),
    ],
)
def test_another_image_processor_is_refused_by_name(values: dict[str, object], says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as error:
        ImageGeometry.from_hf(values, "folder/preprocessor_config.json")
    assert str(error.value).startswith("folder/preprocessor_config.json: ")
    assert "\n" not in str(error.value)


def test_a_folder_without_an_image_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        ImageGeometry.from_folder(tmp_path)
