"""Forty pictures such as people have, as files, through lrkit and through transformers' own processor: equal to the
last bit where both should see the same, and answered about by a checkpoint and by a bundle."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.runtime.sdk import Reasoner
from tests.bundles import CAPACITY, QUESTION, torch_reasoner
from tests.parity.test_preprocess_parity import reference
from tests.preprocess import preprocess
from tests.tiny import PATCH

QWEN = ImageGeometry()
Make = Callable[[], Image.Image]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth light, a few shapes and the grain of a sensor."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for number in range(12):
        x, y = (number * 97) % width, (number * 61) % height
        draw.ellipse((x, y, x + width // 6, y + height // 5), fill=(20 * number, 255 - 20 * number, 90))
    return Image.blend(image, Image.effect_noise((width, height), 40).convert("RGB"), 0.1)


def chart(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    for number, tall in enumerate((3, 8, 5, 9, 2)):
        left = (1 + 2 * number) * width // 11
        box = (left, height - tall * height // 10, left + width // 11, height)
        ImageDraw.Draw(image).rectangle(box, fill=(30, 90, 40 * number))
    return image


def clear() -> Image.Image:
    image = photo(200, 180).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((200, 180)))
    return image


def palette(colours: int) -> Image.Image:
    return photo(180, 170).convert("P", palette=Image.Palette.ADAPTIVE, colors=colours)


KINDS: dict[str, tuple[Make, str, dict[str, object]]] = {
    "phone photo, 12 megapixels": (lambda: photo(4000, 3000), "JPEG", {"quality": 85}),
    "phone photo, upright": (lambda: photo(1512, 2016, 1), "JPEG", {"quality": 80}),
    "camera, progressive": (lambda: photo(1600, 1067, 2), "JPEG", {"progressive": True}),
    "web photo": (lambda: photo(640, 480, 3), "JPEG", {"quality": 60}),
    "no chroma subsampling": (lambda: photo(333, 500, 4), "JPEG", {"subsampling": 0}),
    "low quality": (lambda: photo(320, 240, 5), "JPEG", {"quality": 10}),
    "grey jpeg": (lambda: photo(301, 203).convert("L"), "JPEG", {}),
    "print jpeg": (lambda: photo(220, 200).convert("CMYK"), "JPEG", {"quality": 90}),
    "stereo pair": (lambda: photo(320, 200, 6), "MPO", {"save_all": True, "append_images": [photo(320, 200, 7)]}),
    "screenshot": (lambda: chart(1366, 768), "PNG", {}),
    "long screenshot": (lambda: chart(390, 2500), "PNG", {}),
    "chart": (lambda: chart(225, 180), "PNG", {"optimize": True}),
    "thumbnail": (lambda: photo(48, 31), "PNG", {}),
    "icon": (lambda: chart(16, 16), "PNG", {}),
    "one pixel": (lambda: Image.new("RGB", (1, 1), "red"), "PNG", {}),
    "banner": (lambda: photo(1400, 60), "PNG", {}),
    "tall strip": (lambda: photo(20, 1500), "PNG", {}),
    "scan of a page": (lambda: chart(850, 1100).convert("L"), "PNG", {}),
    "fax": (lambda: chart(400, 300).convert("1"), "PNG", {}),
    "see-through": (clear, "PNG", {}),
    "grey, see-through": (lambda: clear().convert("LA"), "PNG", {}),
    "palette": (lambda: palette(32), "PNG", {}),
    "palette of two": (lambda: palette(2), "PNG", {"bits": 1}),
    "palette, one colour clear": (lambda: palette(16), "PNG", {"transparency": 3}),
    "palette, each colour half clear": (lambda: palette(16), "PNG", {"transparency": bytes(range(0, 256, 16))}),
    "one colour clear": (lambda: chart(150, 90), "PNG", {"transparency": (255, 255, 255)}),
    "with profile and text": (lambda: photo(150, 150), "PNG", {"icc_profile": b"\0\0\0\x80lcms" + bytes(120)}),
    "animation": (lambda: chart(90, 60), "PNG", {"save_all": True, "append_images": [chart(90, 60).rotate(90)]}),
    "gif": (lambda: palette(64), "GIF", {}),
    "gif, moving": (lambda: palette(8), "GIF", {"save_all": True, "append_images": [palette(4)], "duration": 90}),
    "webp": (lambda: photo(230, 170), "WEBP", {}),
    "webp, lossless": (lambda: photo(231, 173), "WEBP", {"lossless": True}),
    "webp, see-through": (clear, "WEBP", {"lossless": True}),
    "bitmap": (lambda: photo(97, 64), "BMP", {}),
    "bitmap of 16 colours": (lambda: palette(16), "BMP", {}),
    "scanner": (lambda: photo(310, 440), "TIFF", {"compression": "tiff_lzw"}),
    "fax machine": (lambda: chart(400, 300).convert("1"), "TIFF", {"compression": "group4"}),
    "several pages": (lambda: chart(200, 260), "TIFF", {"save_all": True, "append_images": [photo(90, 90)]}),
    "print tiff": (lambda: photo(100, 120).convert("CMYK"), "TIFF", {}),
    "research data": (lambda: photo(128, 96), "PPM", {}),
    "blurred": (lambda: photo(500, 375).filter(ImageFilter.GaussianBlur(4)), "JPEG", {}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made: dict[str, Path] = {}
    for name, (make, format, how) in KINDS.items():
        made[name] = folder / f"{len(made)}.{format.lower()}"
        make().save(made[name], format, **how)  # pyright: ignore[reportArgumentType]
    return made


@pytest.mark.parametrize("max_pixels", [1_003_520, pytest.param(12_845_056, marks=pytest.mark.slow)])
def test_files_of_forty_kinds_equal_what_transformers_makes_of_them(files: dict[str, Path], max_pixels: int) -> None:
    """With the two limits that Qwen2-VL is published with; by the larger one nothing of a photo is lost."""
    assert len(files) >= 40
    geometry = ImageGeometry(max_pixels=max_pixels)
    theirs = reference(geometry)
    for name, path in files.items():
        with Image.open(path) as opened:
            expected = theirs(images=[opened], return_tensors="np")
        values, grid = preprocess(path, geometry)
        assert expected["image_grid_thw"].tolist() == [list(grid)], name
        assert np.array_equal(values, expected["pixel_values"]), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_held_any_way_equals_the_upright_one(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = io.BytesIO()
    photo(150, 90).save(raw, "JPEG", exif=exif)
    with Image.open(raw) as opened:
        upright = ImageOps.exif_transpose(opened)
    expected = reference(QWEN)(images=[upright], return_tensors="np")
    assert np.array_equal(preprocess(raw.getvalue(), QWEN)[0], expected["pixel_values"])


def test_all_of_them_are_answered_about_by_checkpoint_and_bundle(files: dict[str, Path], bundle: Path) -> None:
    """The bundle takes 200 patches: a photo of 12 megapixels is shrunk to them, an icon is not."""
    packed, torch = Reasoner.load(bundle, threads=1), torch_reasoner()
    for name, path in files.items():
        answer = packed.ask(path, QUESTION)
        assert answer.spoken_tokens > 0 and answer.prefilled_tokens <= CAPACITY["max_prompt_tokens"], name
        for one in answer.resized:
            assert one.used[0] * one.used[1] <= CAPACITY["max_patches"] * PATCH**2, name
        assert bool(answer.resized) == (name not in ("icon", "one pixel", "thumbnail")), name
    for name in ("web photo", "icon", "palette of two"):
        same = torch.ask(files[name], QUESTION, max_new_tokens=CAPACITY["max_new_tokens"], max_pixels=2000)
        assert packed.ask(files[name], QUESTION, max_pixels=2000).text == same.text, name
