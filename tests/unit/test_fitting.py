"""Pictures that are too large are shrunk by the model's own rule, fairly, and never more than a limit asks for."""

import random

import pytest

from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.prompt import PromptFormat
from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.errors import CapacityError, DataError, UserError
from lrkit.export.targets.target import ProgramLimits, Target, limits_of, picture_warning, processor_of
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.pictures import load as pictures
from lrkit.runtime.encode.fitting import PHOTO, fit_pictures
from lrkit.runtime.encode.processor import Processor
from tests.bundles import picture

QWEN = ImageGeometry(max_pixels=12_845_056)
"""As published with Qwen2-VL."""


def limits(patches: int = 4096, tokens: int = 1536, images: int = 64) -> Limits:
    return Limits(
        max_prompt_tokens=tokens, max_patches=patches, max_images=images, max_latent_steps=1, max_new_tokens=1
    )


def tokens(size: tuple[int, int], geometry: ImageGeometry) -> int:
    width, height = geometry.seen_size(*size)
    return width * height // geometry.factor**2


def test_what_fits_is_seen_by_the_checkpoints_own_geometry_unchanged() -> None:
    fitted = fit_pictures([(640, 480), (37, 91), (1, 1)], QWEN, limits())
    assert fitted.geometries == [QWEN] * 3 and fitted.resized == []
    assert fit_pictures([PHOTO] * 9, QWEN).resized == []


def test_a_photo_is_shrunk_to_nearly_all_of_the_limit_at_its_own_proportions() -> None:
    """It once was refused by the limits that every target has by default."""
    fitted = fit_pictures([PHOTO], QWEN, limits())
    (one,) = fitted.resized
    assert (one.image, one.original, one.limit) == (0, PHOTO, "max_patches")
    width, height = one.used
    assert 950 < tokens(PHOTO, fitted.geometries[0]) <= 1024
    assert width / height == pytest.approx(4 / 3, rel=0.04)
    assert str(one) == f"picture 1 from 4000 x 3000 to {width} x {height} pixels (max_patches)"


def test_the_limit_that_binds_is_named() -> None:
    assert fit_pictures([PHOTO], QWEN, limits(), 900).resized[0].limit == "max_prompt_tokens"
    assert fit_pictures([PHOTO], ImageGeometry(max_pixels=400_000), limits()).resized[0].limit == "max_pixels"
    assert fit_pictures([PHOTO], ImageGeometry(max_pixels=400_000)).resized[0].limit == "max_pixels"


def test_small_pictures_keep_their_size_beside_large_ones_which_share_the_rest() -> None:
    sizes = [PHOTO, (280, 280), PHOTO, (56, 56)]
    fitted = fit_pictures(sizes, QWEN, limits())
    assert [one.image for one in fitted.resized] == [0, 2]
    counts = [tokens(size, geometry) for size, geometry in zip(sizes, fitted.geometries, strict=True)]
    assert counts[1] == 100 and counts[3] == 4
    assert sum(counts) <= 1024 and min(counts[0], counts[2]) > 0.93 * (1024 - 104) / 2


def test_any_pictures_fit_any_limit_that_has_room_for_a_token_each() -> None:
    """Panoramas too, for which the rule keeps a token on the shorter side, and limits below min_pixels."""
    rng = random.Random(0)
    shrunk = 0
    for _ in range(400):
        geometry = ImageGeometry(
            patch_size=rng.choice((4, 8, 14, 16)), merge_size=rng.choice((1, 2)),
            min_pixels=rng.choice((64, 3136, 200_000)), max_pixels=rng.choice((200_000, 1_003_520, 12_845_056)),
        )  # fmt: skip
        sizes = []
        for _ in range(rng.randint(1, 5)):
            short = rng.randint(1, 3000)
            sizes.append(rng.choice(((short, rng.randint(short, min(8000, 150 * short))), (short, short))))
        room = rng.randint(16, 900) * len(sizes)
        bounds = limits(room * geometry.merge_size**2, 10**6)
        fitted = fit_pictures(sizes, geometry, bounds)
        counts = [tokens(size, used) for size, used in zip(sizes, fitted.geometries, strict=True)]
        natural = [tokens(size, geometry) for size in sizes]
        assert sum(counts) <= max(room, sum(natural) if sum(natural) <= room else 0)
        assert all(count <= before for count, before in zip(counts, natural, strict=True))
        assert (counts == natural) == (sum(natural) <= room)
        shrunk += counts != natural
    assert 100 < shrunk < 400


def test_a_limit_without_room_for_a_token_each_is_refused_in_a_sentence() -> None:
    processor = Processor(build_word_tokenizer(["Why"]), ImageGeometry(patch_size=4, min_pixels=64), PromptFormat())
    processor.limits = limits(patches=4, images=9)
    with pytest.raises(CapacityError, match="the pictures make 320 patches, above the bundle's limit max_patches of 4"):
        processor.encode_prompt([picture(), picture()], "Why")
    processor.limits = limits(tokens=3)
    with pytest.raises(CapacityError, match="above the bundle's limit max_prompt_tokens of 3"):
        processor.encode_prompt([picture()], "Why Why Why")


def test_a_picture_that_no_size_fits_is_named_by_its_number() -> None:
    with pytest.raises(DataError, match="picture 2 has 3 x 700 pixels"):
        fit_pictures([(80, 32), (3, 700)], QWEN)


def test_limits_follow_the_checkpoint_where_a_target_says_nothing() -> None:
    large = limits_of(Target(), 4, QWEN)
    assert (large.max_patches, large.max_prompt_tokens) == (4096, 1024 + 512)
    small = limits_of(Target(), 4, ImageGeometry(patch_size=8, merge_size=2, min_pixels=64, max_pixels=128 * 128))
    assert (small.max_patches, small.max_prompt_tokens) == (4 * 256, 256 + 512)
    given = limits_of(Target(limits=ProgramLimits(max_patches=99, max_prompt_tokens=77)), 4, QWEN)
    assert (given.max_patches, given.max_prompt_tokens) == (99, 77)


def test_an_export_says_how_small_a_photo_becomes_and_only_then() -> None:
    processor = Processor(build_word_tokenizer(["Why"]), QWEN, PromptFormat())
    warning = picture_warning(Target(), processor)
    assert warning is not None and "4004 x 2996 pixels (15,301 visual tokens)" in warning and "\n" not in warning
    roomy = ProgramLimits(max_patches=70_000, max_prompt_tokens=20_000)
    assert picture_warning(Target(limits=roomy), processor) is None
    by_pixels = picture_warning(Target(limits=roomy, max_pixels=500_000), processor)
    assert by_pixels is not None and "(609 tokens)" in by_pixels
    made = processor_of(Target(max_pixels=500_000), processor)
    assert (made.geometry.max_pixels, processor.geometry.max_pixels, processor.limits) == (500_000, 12_845_056, None)
    with pytest.raises(UserError, match="so give at least 784"):
        processor_of(Target(max_pixels=100), processor)


def test_pictures_of_a_prompt_are_not_all_held_decoded_at_once(monkeypatch) -> None:
    """Sixty-four large pictures took 17 GB; those beyond a bound are decoded again when their turn comes."""
    decoded: list[object] = []
    load = pictures.load_image
    monkeypatch.setattr(pictures, "load_image", lambda source: decoded.append(source) or load(source))
    monkeypatch.setattr(pictures, "MAX_HELD_PIXELS", 2 * 80 * 32)
    boards = [picture(number) for number in range(4)]
    processor = Processor(build_word_tokenizer(["Why"]), ImageGeometry(patch_size=4, min_pixels=64), PromptFormat())
    few = processor.encode_prompt(boards, "Why")
    assert decoded == [*boards, *boards[2:]]
    monkeypatch.setattr(pictures, "MAX_HELD_PIXELS", 10**9)
    many = processor.encode_prompt(boards, "Why")
    assert few.patches is not None and many.patches is not None and (few.patches == many.patches).all()


def test_a_picture_that_changes_between_two_looks_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "MAX_HELD_PIXELS", 0)
    path = tmp_path / "board.png"
    picture().save(path)
    held = pictures.Pictures([path])
    picture().resize((40, 16)).save(path)
    with pytest.raises(DataError, match="was changed while it was read"):
        held.take(0)
