"""What is particular to pictures in sub-images: how they are split, marked in the prompt, laid over the picture, and
cut again for a teacher."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.sample import Sample
from lrkit.errors import CheckpointError, ConfigError, DataError, UserError
from lrkit.families.idefics3.geometry import SplitPictures
from lrkit.families.idefics3.views import Views
from lrkit.families.table import geometry_of, load_part, read_layout
from lrkit.runtime.encode.processor import Processor
from lrkit.train.fresh import fresh_processor
from lrkit.train.vision import collate_vision
from tests.conftest import MadeOnce
from tests.families.cases import case_of, peer_of
from tests.families.conftest import noise, written
from tests.families.peer import inputs_of, open_processor
from tests.families.published_idefics3 import patches_of

SMALL = SplitPictures(patch_size=4, scale_factor=2, tile=16, longest_edge=64)
CUTS = {
    "small": SMALL,
    "uneven longest side": SplitPictures(patch_size=5, scale_factor=2, tile=24, longest_edge=71),
    "one view": SMALL.model_copy(update={"split": False}),
    "published": SplitPictures(),
    "published, large": SplitPictures(patch_size=14, scale_factor=3, tile=384, longest_edge=1536),
    "beyond what is ever read": SplitPictures(tile=512, longest_edge=5000),
}
SIZES = [(1, 1), (4000, 300), (300, 4000), (512, 512), (1024, 512), (511, 1537), (1, 3000), (101, 100)]
QUESTION = "How many squares are there?"


def image_processor(geometry: SplitPictures) -> Any:
    values = geometry.to_hf()
    return Idefics3ImageProcessorPil(**{key: values[key] for key in values if key not in ("processor_class",)})


@pytest.mark.parametrize("name", ["small", "uneven longest side", "one view"])
def test_every_size_is_split_and_cut_as_transformers_does(name: str) -> None:
    geometry = CUTS[name]
    for size in SIZES:
        picture = noise(*size)
        made = image_processor(geometry)(images=picture, return_tensors="np", return_row_col_info=True)
        grid = (made["rows"][0][0] or 1, made["cols"][0][0] or 1)
        assert geometry.grid(*size) == grid, size
        values = geometry.pixel_values(geometry.cut(picture))
        np.testing.assert_array_equal(values, patches_of(made, geometry), err_msg=str(size))


@pytest.mark.long
@pytest.mark.parametrize("name", ["published", "published, large", "beyond what is ever read"])
@pytest.mark.parametrize("size", [(1, 1), (4000, 300), (2048, 1536), (2049, 2047)])
def test_published_sizes_are_cut_as_transformers_does(name: str, size: tuple[int, int]) -> None:
    geometry, picture = CUTS[name], noise(*size)
    made = image_processor(geometry)(images=picture, return_tensors="np")
    np.testing.assert_array_equal(geometry.pixel_values(geometry.cut(picture)), patches_of(made, geometry))


def test_grids_of_published_pictures() -> None:
    published = CUTS["published"]
    assert published.grid(1, 1) == (4, 4) and published.num_visual_tokens((4, 4)) == 17 * 64
    assert published.grid(4000, 300) == (1, 4) and published.grid(300, 4000) == (4, 1)
    assert published.grid(2048, 1536) == (3, 4) and published.grid(2048, 1537) == (4, 4)
    assert published.with_max_pixels(1 << 40) == published, "every picture is enlarged already"
    smaller = published.with_max_pixels(1100 * 1100)
    assert smaller.longest_edge == 1024 and smaller.grid(4000, 300) == (1, 2)
    assert smaller.with_max_pixels(1 << 40) == published, "what a limit took comes back"
    with pytest.raises(UserError, match="max_pixels is 1000; a view of this model has 512 x 512 pixels"):
        published.with_max_pixels(1000)
    assert CUTS["beyond what is ever read"].grid(1, 1) == (8, 8)


@pytest.mark.parametrize("layout", ["published files", "older vocabulary, tied, in shards"])
def test_marks_of_every_place_are_those_of_the_familys_processor(layout: str, made_once: MadeOnce) -> None:
    """Also where the vocabulary has no token for row and column, and splits each mark as text."""
    case = case_of("idefics3")
    folder = written(case, layout, made_once)
    ours, theirs = Processor.from_folder(folder), open_processor(peer_of(case), folder)
    for sizes in ([(64, 64)], [(64, 10)], [(10, 64)], [(64, 64), (33, 90), (7, 7)]):
        pictures = [noise(*size) for size in sizes]
        ids = ours.encode_prompt(pictures, QUESTION).ids
        assert ids == inputs_of(theirs, QUESTION, pictures)["input_ids"][0].tolist()
    whole = ours.tokenizer.token_to_id("<global-img>")
    assert (whole is None) is ("older" in layout)
    marks = {text: len(ours.tokenizer.encode(text, add_special_tokens=False).ids) for text in ours.geometry.markers}
    assert (marks["<row_1_col_2>"] == 1) is ("older" not in layout)


def test_a_saved_processor_has_the_same_ids_in_transformers(made_once: MadeOnce, tmp_path: Path) -> None:
    """How many image tokens a view has stands in a file of its own."""
    case = case_of("idefics3")
    folder = written(case, "published files", made_once)
    ours = Processor.from_folder(folder)
    ours.save(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    theirs, pictures = open_processor(peer_of(case), tmp_path), [noise(64, 40), noise(9, 30)]
    given = inputs_of(theirs, QUESTION, pictures)["input_ids"][0].tolist()
    assert given == ours.encode_prompt(pictures, QUESTION).ids
    assert Processor.from_folder(tmp_path).encode_prompt(pictures, QUESTION).ids == given


def test_a_smaller_picture_is_told(made_once: MadeOnce) -> None:
    ours = Processor.from_folder(written(case_of("idefics3"), "published files", made_once))
    assert ours.encode_prompt([noise(300, 300)], QUESTION).resized == ()
    (told,) = ours.encode_prompt([noise(300, 300)], QUESTION, max_pixels=32 * 32).resized
    assert (told.used, told.limit) == ((32, 32), "max_pixels")
    ours.limits = Limits(max_prompt_tokens=200, max_patches=400, max_images=2, max_latent_steps=1, max_new_tokens=1)
    small, large = noise(10, 64), noise(64, 64)
    told = ours.encode_prompt([small, large], QUESTION).resized
    assert [(one.image, one.used, one.limit) for one in told] == [(1, (32, 32), "max_patches")]


def test_a_prompt_without_a_picture_is_the_template_without_one(made_once: MadeOnce) -> None:
    """There the colon is followed by a space."""
    folder = written(case_of("idefics3"), "published files", made_once)
    processor = Processor.from_folder(folder)
    assert processor.format.prompt_text("Why?", 0) == "<|im_start|>User: Why?<end_of_utterance>\nAssistant:"
    assert processor.format.prompt_text("Why?", 1) == "<|im_start|>User:<image>Why?<end_of_utterance>\nAssistant:"
    assert processor.format.tokens.latent == "<|reserved_special_token_0|>", "every row has its token"
    with pytest.raises(DataError, match="<row_1_col_1>"):
        processor.encode_prompt([], "What is <row_1_col_1>?")


def test_a_line_break_in_a_question_is_no_mark(made_once: MadeOnce) -> None:
    folder = written(case_of("idefics3"), "published files", made_once)
    assert "\n" in Processor.from_folder(folder).geometry.markers
    Processor.from_folder(folder).encode_prompt([noise(30, 30)], "What\n\nis it?")


def test_tokens_of_the_whole_lie_over_those_of_the_parts() -> None:
    size, grid = (400, 300), (2, 4)
    boxes = [SMALL.token_box(index, grid, size) for index in range(SMALL.num_visual_tokens(grid))]
    assert len(boxes) == 9 * 4
    assert boxes[0] == (0, 0, 50, 75) and boxes[4] == (100, 0, 150, 75), "then the sub-image beside"
    assert boxes[-4:] == [(0, 0, 200, 150), (200, 0, 400, 150), (0, 150, 200, 300), (200, 150, 400, 300)]


def test_the_teachers_window_is_chosen_by_the_parts() -> None:
    views, grid = Views(patch_size=4, scale_factor=2, tile=16), (2, 3)
    chosen = torch.zeros(7 * 4, dtype=torch.bool)
    chosen[-1] = True
    whole = views.token_raster(chosen, grid)
    assert whole.shape == (4, 6) and whole.sum() == 6 and whole[2:, 3:].all(), "all that the coarse token lies over"
    chosen[4] = True  # the second sub-image, its first token
    parts = views.token_raster(chosen, grid)
    assert parts.nonzero().tolist() == [[0, 2]]
    single = views.token_raster(torch.tensor([False, True, False, False]), (1, 1))
    assert single.nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("name", ["small", "spare pixels"])
def test_a_picture_is_cut_again_as_it_was(name: str) -> None:
    geometry = SMALL if name == "small" else case_of("idefics3").geometries["spare pixels"]
    assert isinstance(geometry, SplitPictures)
    views = Views(geometry.patch_size, geometry.scale_factor, geometry.tile)
    for size in ((64, 20), (64, 64), (5, 9)):
        grid, patches = geometry.grid(*size), torch.from_numpy(geometry.pixel_values(geometry.cut(noise(*size))))
        assert views.picture_sizes(grid) == (len(patches), geometry.num_visual_tokens(grid))
        image = views.unpatch(patches, grid)
        again = views.patch(image)
        parts = grid[0] * grid[1] * geometry.side**2
        assert torch.equal(again[:parts], patches[:parts]) and again.shape == patches.shape
        assert torch.equal(views.unpatch(again, grid), image)
        if parts < len(patches) and geometry is SMALL:  # the whole is resized by another filter
            assert float((again[parts:] - patches[parts:]).abs().mean()) < 0.2
    images = views.images(torch.from_numpy(geometry.pixel_values(geometry.cut(noise(64, 64)))))
    assert images.shape[1:] == (3, geometry.tile, geometry.tile)


WRONG: dict[str, tuple[str, Any, str]] = {
    "another processor": ("preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}, "lrkit reads"),
    "no resizing": ("preprocessor_config.json", {"do_resize": False}, "do_resize is false"),
    "a height": ("preprocessor_config.json", {"size": {"height": 9, "width": 9}}, "reads its longest_edge"),
    "no number": ("preprocessor_config.json", {"size": {"longest_edge": "x"}}, "copy the file again"),
    "tiles that do not fit": ("preprocessor_config.json", {"max_image_size": {"longest_edge": 20}}, "multiple of the"),
    "too many tiles": ("preprocessor_config.json", {"size": {"longest_edge": 4000}}, "split into 125 rows"),
    "tokens of another model": ("processor_config.json", {"image_seq_len": 81}, "says 81 image tokens a view"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_do_not_fit_are_named(name: str, made_once: MadeOnce, tmp_path: Path) -> None:
    file, change, said = WRONG[name]
    folder = written(case_of("idefics3"), "published files", made_once)
    for one in ("config.json", "preprocessor_config.json", "processor_config.json"):
        values = json.loads((folder / one).read_text(encoding="utf-8"))
        text = json.dumps({**values, **change} if one == file else values)
        (tmp_path / one).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=said) as seen:
        geometry_of("idefics3").from_folder(tmp_path)
    assert "\n" not in str(seen.value)


CONFIGS: dict[str, tuple[str | None, Any, str]] = {
    "biases": ("text_config", {"attention_bias": True}, "attention_bias"),
    "scaled positions": ("text_config", {"rope_scaling": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type"),
    "another activation": ("vision_config", {"hidden_act": "relu"}, "hidden_act"),
    "squares that do not fit": (None, {"scale_factor": 3}, "scale_factor 3 does not divide"),
    "no text": (None, {"text_config": None}, "text_config is NoneType"),
    "an image token without a row": (None, {"image_token_id": 60000}, "beyond the vocabulary"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_lrkit_does_not_know_is_named(name: str, made_once: MadeOnce, tmp_path: Path) -> None:
    part, change, said = CONFIGS[name]
    folder = written(case_of("idefics3"), "published files", made_once)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values = {**values, part: {**values[part], **change}} if part else {**values, **change}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match=said) as seen:
        read_layout(tmp_path)
    assert "\n" not in str(seen.value)


def test_what_published_files_leave_out_is_transformers_default(made_once: MadeOnce, tmp_path: Path) -> None:
    folder = written(case_of("idefics3"), "published files", made_once)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vision = {"hidden_size": 768, "image_size": 512, "num_attention_heads": 12, "patch_size": 16}
    (tmp_path / "config.json").write_text(json.dumps({**values, "vision_config": vision}), encoding="utf-8")
    layout = read_layout(tmp_path)
    assert layout.tensors["model.vision_model.encoder.layers.11.mlp.fc1.weight"] == (3072, 768)
    assert layout.config["text_config"]["rope_parameters"]["rope_theta"] == 100000


def test_both_names_of_the_architecture_are_one_code() -> None:
    for part in ("geometry", "backbone"):
        older, newer = load_part("idefics3", part), load_part("smolvlm", part)
        assert issubclass(newer, older) and newer is not older


def test_one_view_whatever_the_limits() -> None:
    """Where the file says that pictures are not split."""
    geometry = CUTS["one view"]
    assert geometry.grid(4000, 300) == (1, 1) and geometry.markers[:2] == ("<fake_token_around_image>", "<global-img>")
    assert len(geometry.cut(Image.new("RGB", (40, 30)))) == 16
    assert geometry.token_box(3, (1, 1), (40, 30)) == (20, 15, 40, 30)


def test_labels_of_visual_tokens_that_are_cut_otherwise_are_refused() -> None:
    """Rooms of a drawn board are tokens; here every picture is resized to one view."""
    processor = fresh_processor(family="idefics3")
    sample = _board()
    with pytest.raises(ConfigError, match="labels 4 visual tokens of a sample, and the model makes 256"):
        collate_vision(processor, [sample], ["rooms"])


def _board() -> Sample:
    return Sample((noise(32, 32),), "Start in room 0", (), "0", "1", {"rooms": np.zeros(4, np.int64)})
