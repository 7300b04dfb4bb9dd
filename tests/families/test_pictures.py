"""What the tower gets of a picture is what the family's own image processor makes of it, on Pillow: to the last bit."""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from lrkit.errors import DataError
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from tests.families.cases import FamilyCase, peer_of
from tests.families.conftest import noise
from tests.families.peer import open_image_processor

SIZES = ((80, 32), (1, 1), (1, 7), (200, 11), (28, 28), (37, 91), (333, 500), (640, 481))
LARGE = ((1500, 1111), (3001, 97), (97, 1801))

QUESTION = "How many squares are there?"


@dataclass(frozen=True)
class Sides:
    """Both image processors of a folder."""

    case: FamilyCase
    ours: Processor
    theirs: Any

    def encode(self, picture: Any) -> EncodedPrompt:
        return self.ours.encode_prompt([picture], QUESTION)

    def check(self, picture: Image.Image, theirs: Image.Image | None = None) -> np.ndarray:
        encoded = self.encode(picture)
        made = self.theirs(images=[theirs or picture], return_tensors="np")
        expected = peer_of(self.case).patches(made, self.ours.geometry)
        values = encoded.pixel_values
        assert values is not None and values.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(values, expected, err_msg=f"{picture.size} {picture.mode}")
        return values


@cache
def sides_of(case: FamilyCase, folder: Path) -> Sides:
    return Sides(case, Processor.from_folder(folder), open_image_processor(folder))


@pytest.fixture
def sides(variant: tuple[FamilyCase, Path]) -> Sides:
    return sides_of(*variant)


def test_equal_over_sizes(sides: Sides) -> None:
    for size in SIZES:
        sides.check(noise(*size))


def test_equal_for_large_pictures(sides: Sides) -> None:
    for size in LARGE:
        sides.check(noise(*size))


@pytest.mark.long
def test_equal_at_the_familys_own_limits(sides: Sides) -> None:
    for size in (*sides.case.sizes, (4000, 3000), (5000, 4800)):
        sides.check(noise(*size))


def test_equal_over_modes(sides: Sides) -> None:
    for mode in peer_of(sides.case).modes:
        picture = noise(61, 44)
        if mode == "RGBA":
            picture.putalpha(Image.linear_gradient("L").resize((61, 44)))
        elif mode == "LA":
            grey = picture.convert("L")
            grey.putalpha(Image.linear_gradient("L").resize((61, 44)))
            picture = grey
        sides.check(picture if picture.mode == mode else picture.convert(mode))


def test_lrkits_own_rules_hold_before_the_familys(sides: Sides) -> None:
    """A photo is turned as its EXIF says, and 16-bit grey is scaled to 8 bits."""
    upright = noise(120, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    file = io.BytesIO()
    upright.save(file, "PNG", exif=exif)
    stored = Image.open(io.BytesIO(file.getvalue()))
    turned = ImageOps.exif_transpose(stored)
    assert turned.size == (64, 120)
    sides.check(stored, turned)
    grey = np.random.default_rng(3).integers(0, 65536, (44, 61), dtype=np.uint16)
    scaled = Image.fromarray(np.round(grey / 257).astype(np.uint8)).convert("RGB")
    sides.check(Image.fromarray(grey), scaled)


def test_what_the_family_refuses_is_one_sentence(sides: Sides) -> None:
    for size in sides.case.refused:
        with pytest.raises(DataError) as said:
            sides.encode(Image.new("RGB", size))
        assert "\n" not in str(said.value) and str(size[0]) in str(said.value)
        with pytest.raises(ValueError):
            sides.theirs(images=[Image.new("RGB", size)], return_tensors="np")


def test_a_saved_geometry_is_read_by_transformers_as_the_same(sides: Sides, tmp_path: Path) -> None:
    sides.ours.save(tmp_path)
    (tmp_path / "config.json").write_text(f'{{"model_type": "{sides.case.name}"}}', encoding="utf-8")
    again = Sides(sides.case, Processor.from_folder(tmp_path), open_image_processor(tmp_path))
    assert again.ours.geometry == sides.ours.geometry
    picture = noise(90, 40)
    np.testing.assert_array_equal(again.check(picture), sides.check(picture))
    again.theirs.save_pretrained(tmp_path / "again")
    assert type(sides.ours.geometry).from_folder(tmp_path / "again").to_hf() == sides.ours.geometry.to_hf()
