"""Image preprocessing against transformers' own Qwen2-VL image processor (Pillow backend): equal to the last bit."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lrkit.families.qwen2_vl.geometry import ImageGeometry
from tests.preprocess import preprocess

QWEN = ImageGeometry()
TINY = ImageGeometry(
    patch_size=4, min_pixels=64, max_pixels=64 * 64, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5)
)
SIZES = [(80, 32), (1, 1), (1, 7), (200, 1), (28, 28), (37, 91), (333, 500), (640, 481), (1500, 1111), (3001, 97)]


def reference(geometry: ImageGeometry) -> Qwen2VLImageProcessorPil:
    described = {"image_processor_type", "processor_class"}
    return Qwen2VLImageProcessorPil(**{key: value for key, value in geometry.to_hf().items() if key not in described})


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze(-1) if channels == 1 else values)


def assert_equal(image: Image.Image, geometry: ImageGeometry, theirs_of: Image.Image | None = None) -> None:
    patches, grid = preprocess(image, geometry)
    theirs = reference(geometry)(images=[theirs_of or image], return_tensors="np")
    assert theirs["image_grid_thw"].tolist() == [list(grid)]
    assert patches.dtype == theirs["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(patches, theirs["pixel_values"])


@pytest.mark.parametrize("geometry", [QWEN, TINY], ids=["qwen2-vl", "tiny"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_equal_over_sizes_and_aspect_ratios(size: tuple[int, int], geometry: ImageGeometry) -> None:
    assert_equal(noise(*size), geometry)


def test_equal_for_a_picture_above_the_largest_number_of_pixels() -> None:
    small_limit = QWEN.model_copy(update={"max_pixels": 28 * 28 * 16})
    assert_equal(noise(2600, 1900), small_limit)


@pytest.mark.parametrize("merge_size", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 2])
def test_equal_over_merge_sizes_and_frames(merge_size: int, frames: int) -> None:
    geometry = ImageGeometry(
        patch_size=6, merge_size=merge_size, temporal_patch_size=frames, min_pixels=300, max_pixels=9000
    )
    assert_equal(noise(70, 45), geometry)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGBA", 4)])
def test_equal_for_other_channels(mode: str, channels: int) -> None:
    image = noise(61, 44, channels)
    assert image.mode == mode
    assert_equal(image, QWEN)


@pytest.mark.parametrize("mode", ["P", "1", "LA", "CMYK", "YCbCr"])
def test_equal_for_other_modes(mode: str) -> None:
    assert_equal(noise(61, 44).convert(mode), QWEN)


def test_equal_for_a_palette_with_a_transparent_colour() -> None:
    image = noise(61, 44).convert("P")
    image.info["transparency"] = image.getpixel((0, 0))
    patches, _ = preprocess(image, QWEN)
    assert_equal(image, QWEN)
    del image.info["transparency"]
    plain, _ = preprocess(image, QWEN)
    assert not np.array_equal(patches, plain)


def test_exif_rotation_is_applied_before_what_transformers_does() -> None:
    upright = noise(120, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    file = io.BytesIO()
    upright.save(file, "PNG", exif=exif)
    stored = Image.open(io.BytesIO(file.getvalue()))
    turned = ImageOps.exif_transpose(stored)
    assert turned.size == (64, 120)
    assert_equal(stored, QWEN, theirs_of=turned)


def test_a_saved_geometry_is_read_by_transformers_as_the_same_processor(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(TINY.to_hf()))
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    theirs = loaded(images=[noise(90, 40)], return_tensors="np")
    patches, _ = preprocess(noise(90, 40), TINY)
    np.testing.assert_array_equal(patches, theirs["pixel_values"])
    loaded.save_pretrained(tmp_path / "again")
    assert ImageGeometry.from_folder(tmp_path / "again") == TINY
