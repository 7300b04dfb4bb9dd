"""What is particular to Chameleon: the middle of a picture, words that stand for codes, tokens that are never said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from PIL import Image

from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import CheckpointError, DataError, UserError
from lrkit.export.check import logits_error
from lrkit.export.graph.tracing import traced
from lrkit.export.graph.writer import PIXEL_CENTRE, PIXEL_UNIT
from lrkit.families.chameleon.geometry import SquareGeometry
from lrkit.families.chameleon.tower import TraceableCodes
from lrkit.families.chameleon.vocabulary import code_name, read_map, visual_words
from lrkit.families.table import read_layout
from lrkit.model.build import build_reasoner
from lrkit.model.open_backbone import load_backbone
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts
from tests.conftest import MadeOnce
from tests.families.cases import peer_of
from tests.families.conftest import noise, written
from tests.families.peer import open_model
from tests.families.published_chameleon import (
    CASE,
    FEW_CODES,
    IDS,
    IMAGE,
    LATENT,
    TURN,
    few_names,
    write_published,
)

PUBLISHED = SquareGeometry()


@pytest.fixture(scope="module")
def folder(made_once: MadeOnce) -> Path:
    return written(CASE, "small pictures", made_once)


@pytest.mark.parametrize("size", [(1000, 500), (500, 1000), (512, 512), (37, 91), (1023, 517)])
def test_tokens_lie_in_the_middle_square_of_the_picture(size: tuple[int, int]) -> None:
    """A white dot in a black picture: what the tower sees of it is in the patch whose box holds it."""
    grid = PUBLISHED.grid(*size)
    boxes = [PUBLISHED.token_box(index, grid, size) for index in range(PUBLISHED.num_visual_tokens(grid))]
    shorter = min(size)
    left, top = boxes[0][:2]
    assert boxes[-1][2] - left == pytest.approx(shorter, abs=1.5) and boxes[-1][3] - top == pytest.approx(
        shorter, abs=1.5
    )
    assert left == pytest.approx((size[0] - shorter) / 2, abs=1.5)
    assert top == pytest.approx((size[1] - shorter) / 2, abs=1.5)
    for index in (0, 31, 500, 1023):
        x, y = (boxes[index][0] + boxes[index][2]) / 2, (boxes[index][1] + boxes[index][3]) / 2
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[int(y), int(x)] = 255
        brightest = PUBLISHED.cut(Image.fromarray(pixels)).reshape(1024, -1).astype(int).sum(1).argmax()
        rows, columns = divmod(int(brightest), 32), divmod(index, 32)
        assert max(abs(a - b) for a, b in zip(rows, columns, strict=True)) <= (1 if shorter < 64 else 0)


def test_the_edges_of_a_picture_are_not_seen() -> None:
    picture = np.full((200, 500, 3), 90, np.uint8)
    other = picture.copy()
    other[:, :120] = other[:, 380:] = 250
    assert np.array_equal(PUBLISHED.cut(Image.fromarray(picture)), PUBLISHED.cut(Image.fromarray(other)))


@pytest.mark.parametrize("size", [(1, 201), (5000, 20)])
def test_a_picture_that_would_be_resized_to_a_giant_is_refused(size: tuple[int, int]) -> None:
    for ask in (PUBLISHED.check_size, PUBLISHED.grid, PUBLISHED.seen_size):
        with pytest.raises(DataError, match=f"{size[0]} x {size[1]} pixels"):
            ask(*size)


def test_a_limit_on_pixels_has_no_meaning_and_says_so() -> None:
    assert PUBLISHED.with_max_pixels(512 * 512) is PUBLISHED and PUBLISHED.with_max_pixels(10**9) is PUBLISHED
    with pytest.raises(UserError, match=r"sees every picture at 512 x 512 pixels, so give at least 262144"):
        PUBLISHED.with_max_pixels(512 * 511)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"do_center_crop": False}, "do_center_crop is false"),
        ({"crop_size": {"height": 512, "width": 256}}, "needs a square"),
        ({"crop_size": 1024}, "above the shorter side 512"),
        ({"size": {"height": 512, "width": 512}}, "shortest_edge is None, no number of pixels"),
        ({"crop_size": 500}, "must be a multiple of 16"),
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type is CLIPImageProcessor"),
    ],
)
def test_another_image_processor_is_one_sentence(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED.to_hf() | change))
    with pytest.raises(CheckpointError, match=said) as error:
        SquareGeometry.from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_an_older_file_with_numbers_for_sizes_is_read(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED.to_hf() | {"size": 512, "crop_size": 512}))
    assert SquareGeometry.from_folder(tmp_path) == PUBLISHED


def test_the_words_of_codes_are_found_by_their_names() -> None:
    names = {code_name(code): 100 + 7 * code for code in range(30)} | {IMAGE: 99, "dog": 5}
    assert code_name(15) == "IMGIMGBFZ"
    assert visual_words(read_map(names, 30, 400, "map")) == tuple(100 + 7 * code for code in range(30))


NAMES = {code_name(code): 10 + code for code in range(4)} | {IMAGE: 9}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (None, "is NoneType where a mapping belongs"),
        ({**NAMES, "IMGIMGBZ": "11"}, "IMGIMGBZ is 11, which is no row"),
        ({**NAMES, "IMGIMGBZ": 64}, "IMGIMGBZ is 64, which is no row"),
        ({**NAMES, "IMGIMGBZ": True}, "IMGIMGBZ is True, which is no row"),
        ({**NAMES, "IMGIMGKZ": 40}, "IMGIMGKZ names no code"),
        ({name: index for name, index in NAMES.items() if name != IMAGE}, "has no <image>"),
        ({name: index for name, index in NAMES.items() if name != "IMGIMGBZ"}, "names 3 codes of pictures where"),
        ({**NAMES, "IMGIMGABZ": 40}, "names 5 codes of pictures where"),
        ({**NAMES, "IMGIMGBZ": 10}, "two names one id"),
    ],
)
def test_a_wrong_map_of_words_is_one_sentence(values: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as error:
        read_map(values, 4, 64, "config.json: vocabulary_map")
    assert "\n" not in str(error.value)


def test_the_config_keeps_the_words_of_pictures_alone(folder: Path) -> None:
    layout = read_layout(folder)
    assert layout.config["vocabulary_map"] == few_names() and layout.image_id == IDS[IMAGE]


def test_a_plain_folder_asks_as_its_makers_do(folder: Path) -> None:
    """The whole vocabulary is taken: a reserved word becomes the token that asks for another latent step."""
    processor = Processor.from_folder(folder)
    prompt = processor.encode_prompt([noise(50, 40)], "How many?")
    assert prompt.ids[0] == IDS["<s>"] and prompt.ids[-1] == IDS[TURN]
    assert prompt.ids[-3:-1] == [IDS[IMAGE], IDS["<eoss>"]] and prompt.ids.count(IDS[IMAGE]) == 16
    assert processor.latent_id == IDS[LATENT] and processor.last_id == 65_535
    for control in (LATENT, TURN, IMAGE, "<racm3:break>"):
        with pytest.raises(DataError, match="only the prompt format may use"):
            processor.encode_prompt([], f"What is {control}?")


@torch.no_grad()
def test_codes_are_never_said_and_pictures_are_rows_of_the_embedding(folder: Path) -> None:
    backbone = load_backbone(str(folder), torch.float32)
    processor = Processor.from_folder(folder)
    settings = ReasonerSettings.model_validate({"replay": {"num_tokens": 0}, "routing": {"depth": 0}})
    reasoner = build_reasoner(backbone, settings, processor.latent_id).eval()
    batch = collate_prompts([processor.encode_prompt([noise(90, 70)], "How many?")], processor.pad_id)
    assert batch.pixel_values is not None and batch.grids is not None
    words = torch.tensor([index for name, index in few_names().items() if name != IMAGE])
    visual = backbone.encode_images(batch.pixel_values, batch.grids)
    rows = backbone.embedding_rows()[words]
    assert all((rows == token).all(1).any() for token in visual) and len(visual.unique(dim=0)) > 4
    logits = reasoner.logits(reasoner.prefill(batch).last_hidden_BD)[0]
    assert (logits[words] == torch.finfo(torch.float32).min).all()
    assert (logits == torch.finfo(torch.float32).min).sum() == FEW_CODES


def test_training_the_embedding_reaches_it_through_pictures(folder: Path) -> None:
    """A code's row gets gradient where its code is seen; the tower gets none."""
    backbone = load_backbone(str(folder), torch.float32)
    processor = Processor.from_folder(folder)
    batch = collate_prompts([processor.encode_prompt([noise(90, 70)], "How many?")], processor.pad_id)
    assert batch.pixel_values is not None and batch.grids is not None
    backbone.encode_images(batch.pixel_values, batch.grids).square().sum().backward()
    gradient = backbone.embedding_rows().grad
    assert gradient is not None
    words = torch.tensor([index for name, index in few_names().items() if name != IMAGE])
    touched = set(gradient.abs().sum(1).nonzero().flatten().tolist())
    assert touched and touched <= set(words.tolist())
    assert all(p.grad is None for name, p in backbone.model.named_parameters() if "vqmodel" in name)


@pytest.mark.slow
@torch.no_grad()
def test_the_published_numbers(tmp_path: Path) -> None:
    """512 x 512 pixels, 1,024 of 8,192 codes, a map of all 65,536 names; and a program's tower, which computes in
    float32, chooses the codes that torch chooses."""
    folder = write_published(tmp_path / "whole", whole=True)
    backbone, processor = load_backbone(str(folder), torch.float32), Processor.from_folder(folder)
    assert processor.geometry == PUBLISHED and len(read_layout(folder).config["vocabulary_map"]) == 8193
    picture = noise(80, 60).resize((800, 600))
    batch = collate_prompts([processor.encode_prompt([picture, picture.rotate(90)], "Which?")], processor.pad_id)
    assert batch.pixel_values is not None and batch.grids is not None
    assert int((batch.input_ids == IDS[IMAGE]).sum()) == len(batch.pixel_values) == 2048
    pixels = torch.stack([backbone.unpatch(part, (32, 32)) for part in batch.pixel_values.split(1024)])
    theirs: Any = open_model(peer_of(CASE), folder)
    expected = theirs.get_image_features(pixels).pooler_output.flatten(0, 1)
    assert torch.equal(backbone.encode_images(batch.pixel_values, batch.grids), expected)
    codes = theirs.model.vqmodel.encode(pixels, return_dict=True).image_tokens
    assert len(codes.unique()) > 200
    traceable = TraceableCodes(theirs.model.vqmodel, PUBLISHED).eval()
    example = {"pixel_values": torch.zeros(2048, PUBLISHED.patch_bytes)}
    made = traced(traceable, example, {0: 1024 * torch.export.Dim("pictures", min=1)})
    ir.save(ir.Model(made, ir_version=10), tmp_path / "tower.onnx")
    session: Any = onnxruntime.InferenceSession(tmp_path / "tower.onnx", providers=["CPUExecutionProvider"])
    patches = processor.encode_prompt([picture, picture.rotate(90)], "Which?").patches
    assert patches is not None
    numbers = ((patches.astype(np.float32) - PIXEL_CENTRE) * PIXEL_UNIT).astype(np.float32)
    (chosen,) = session.run(None, {session.get_inputs()[0].name: numbers})
    assert (chosen != codes.numpy()).mean() < 1e-3


def test_closed_logits_do_not_hide_a_wrong_program() -> None:
    """Their numbers are so large that any other difference would vanish beside them."""
    closed = np.finfo(np.float32).min
    torchs = np.array([1.0, 2.0, closed, -3.0], np.float32)
    assert logits_error(np.array([1.0, 2.0, -1e30, -3.0], np.float32), torchs) == 0.0
    assert logits_error(np.array([1.0, 2.3, -1e30, -3.0], np.float32), torchs) == pytest.approx(0.1)
    assert logits_error(np.array([1.0, 2.0, 1.5, -3.0], np.float32), torchs) == float("inf")
    assert logits_error(np.array([1.0, 2.0, -29_999.0, -3.0], np.float32), torchs) == 0.0
